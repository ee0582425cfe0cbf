"""Going through all secrets of an installation: to seal them, with another key, or to see whether they can be read."""

from app.resources import Resources
from app.services import sealed_secrets
from app.services.sealed_secrets import Count, Seal


async def run(resources: Resources, what: Seal) -> Count:
    """A transaction for every few hundred, beside whatever processes are at work. Raises CannotSeal, Unavailable."""
    total, after = Count(), ""
    while after is not None:
        async with resources.read() if what is Seal.NOTHING else resources.write() as session:
            count, after = await sealed_secrets.go_through(session, resources.sealer, what, after=after)
        total += count
    return total
