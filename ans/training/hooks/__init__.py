"""What happens between steps: each part with its own state, which is saved and loaded with the run's."""

from typing import Any


class Hook:
    """Called after every step, in the order of `Run.hooks`, on every process that has it. `over`: nothing more is to be learnt, so the
    training ends."""

    @property
    def over(self) -> bool:
        return False

    def after(self, step: int, values: dict[str, float]) -> None:
        """Act after a step: `step` steps are done; `values` are those of the last. Values that are added there reach the hooks that
        come later; the curves come first."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
