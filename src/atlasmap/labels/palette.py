"""Colours of all figures and pages, distinguishable also for colour-blind readers."""

BLUE, RED, BLACK, GREY = "#0072b2", "#d55e00", "#1a1a1a", "#d9d9d9"
GREEN, ORANGE = "#009e73", "#e69f00"

# Okabe and Ito's seven; each further colour is the one farthest in OKLab from all before it, from
# white and from GREY, for normal, deuteranopic and protanopic vision (Machado 2009).
HEX = """
0072b2 e69f00 009e73 cc79a7 d55e00 56b4e9 f0e442 66001f 1f0099 4700ff a31f5c 857aff 66cc8f 703d00
471f5c 660ac2 cc0a99 a35233 ff4770 99ccff e029d6 adeb99 70297a 85c2c2 f5c252 29667a 1f523d f5703d
527ad6 f5a370 705cff 8599ff 333d99 eb0052 8529d6 add6ad 29a3b8 5c007a b83db8 7aebff cc1470 52293d
d61400 70b899 7a5c99 eb70cc a30a29 701f0a b86699 3d0aad ffade0 8f005c 297a47 d69966 99993d 703dad
ff99b8 5ce01f c27a85 8599d6 00d6e0 668552 ad147a b8d67a
"""
PALETTE = [f"#{color}" for color in HEX.split()]
ROLES = {"reference": "#bdbdbd", "query": BLUE}
VERDICTS = {"confident": GREEN, "ambiguous": ORANGE, "novel": RED, "reference": "#bdbdbd"}


def colors_of(names: list[str]) -> dict[str, str]:
    """A colour for each name, by its place in the list."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def colors_of_labels(names: set[str], unlabeled: str) -> dict[str, str]:
    """A colour for each label, and grey for cells without one."""
    known = sorted(names - {unlabeled}, key=str.casefold)
    return colors_of(known) | ({unlabeled: GREY} if unlabeled in names else {})
