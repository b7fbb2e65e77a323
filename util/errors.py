"""The one exception that a user is meant to see."""

LONGEST = 2000  # characters; a hostile file must not fill the screen


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: the culprit (key, file) and the way out.

    `util.run.main` prints it as `error: ...` on stderr and exits with status 2. What a file has put into the text
    (line ends, terminal codes) is escaped.
    """

    def __init__(self, text: str):
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))
