from tests.e2e.fixtures import server, template

__all__ = ["server", "template"]
