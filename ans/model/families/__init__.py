"""One file per family of vision-language models, each with a class `Family`; `ans/model/config.py` finds them."""
