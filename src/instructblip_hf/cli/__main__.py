"""``python -m instructblip_hf.cli``, the command for where scripts are not on the path."""

from . import main


if __name__ == "__main__":
    main()
