from tests.e2e.fixtures import install, server, template, undisturbed

__all__ = ["install", "server", "template", "undisturbed"]
