"""One file per mask decoder, each with a class `MaskDecoder`; `ans/model/config.py` finds them."""
