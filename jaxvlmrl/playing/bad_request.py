"""What a request asks for cannot be. Apart, since the server must know it before anything heavy is imported."""


class BadRequest(ValueError):
    """One sentence for people."""
