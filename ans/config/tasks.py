"""What the settings of every task have: `train.<task>` in `params.yaml`."""

from abc import abstractmethod
from collections.abc import Mapping

from pydantic import Field

from ans.config.fields import Section
from ans.config.schema import VideoFolder


class TaskSettings(Section):
    """Whether a task is trained, and which indexes it reads."""

    enabled: bool = Field(True, description="true: train this task")

    @abstractmethod
    def indexes(self) -> tuple[str, ...]:
        """Return the indexes that the task reads."""

    def labelled(self) -> tuple[str, ...]:
        """Return those of them whose evaluated images it leaves out."""
        return ()

    @property
    def follows(self) -> bool:
        """Whether a mask decoder's memory takes part."""
        return False

    def clips(self) -> Mapping[str, VideoFolder]:
        """Return the sets of videos that the task reads, by name."""
        return {}
