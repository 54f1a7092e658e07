"""One file per published layout of videos with expressions, each with `read(root, folder, split)`; `ans/data/clips.py` finds them."""
