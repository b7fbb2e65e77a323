"""Which of a teacher's classes make up each of ours, by their names."""

import re
from collections.abc import Mapping, Sequence

from util.errors import UserError, suggest

SHOWN = 12  # names of a list in an error


def groups(
    ours: Sequence[str], theirs: Sequence[str], mapping: Mapping[str, Sequence[str]] | None, teacher: str
) -> list[list[int]]:
    """For each of our classes the indices of the teacher's that add up to it; none where it knows none.

    mapping: DISTILL.teacher_classes, our name -> the teacher's names; None: the names must be equal, in any order.
    Case, blanks, hyphens and underscores do not matter; a name that the teacher has several times means all of them.
    Raises UserError for names that are not there, classes that are mapped twice, and lists that differ.
    """
    where: dict[str, list[int]] = {}
    for index, name in enumerate(theirs):
        where.setdefault(_plain(name), []).append(index)
    own = {_plain(name): index for index, name in enumerate(ours)}
    if mapping is None:
        if len(own) != len(ours) or own.keys() != where.keys() or len(theirs) != len(ours):
            raise UserError(
                f"{teacher} has {_shown(theirs)}; DATA.names_path has {_shown(ours)}; say in DISTILL.teacher_classes "
                "which of its classes make up each of ours, such as {car: [car, truck]}"
            )
        return [where[name] for name in own]
    found: list[list[int]] = [[] for _ in ours]
    taken: dict[int, str] = {}
    for name, parts in mapping.items():
        if _plain(name) not in own:
            raise UserError(f"DISTILL.teacher_classes: {name} is no class of DATA.names_path; {_near(name, ours)}")
        for part in parts:
            if _plain(part) not in where:
                raise UserError(f"DISTILL.teacher_classes, {name}: {teacher} has no {part}; {_near(part, theirs)}")
            for index in where[_plain(part)]:
                if index in taken:
                    raise UserError(
                        f"DISTILL.teacher_classes: {part} stands under {taken[index]} and under {name}; a class of the "
                        "teacher's belongs to one of ours"
                    )
                taken[index] = name
                found[own[_plain(name)]].append(index)
    if sum(map(bool, found)) < 2:
        raise UserError(f"DISTILL.teacher_classes maps {len(mapping)} classes; probabilities are of two or more")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())


def _shown(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} classes ({', '.join(names[:SHOWN])}{more})"


def _near(name: str, known: Sequence[str]) -> str:
    return suggest(name, known, SHOWN)
