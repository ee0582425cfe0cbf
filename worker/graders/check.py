"""What can be told of a grader before any sample is graded, without running anything of it."""

import ast
import warnings
from collections import Counter
from collections.abc import Iterator

from worker.contract.graders import (
    AnyGrader,
    AudioPart,
    Content,
    ImagePart,
    LabelModel,
    Multi,
    Python,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from worker.graders import formula, templates
from worker.graders.faults import GraderFault

MAX_PARSED_BYTES = 16 * 1024


def check(grader: AnyGrader) -> None:
    """Raises GraderFault."""
    if isinstance(grader, Multi):
        _multi(grader)
    elif isinstance(grader, Python):
        source(grader.source)
    else:
        for template in _templates(grader):
            templates.check(template)
    if isinstance(grader, LabelModel) and not set(grader.passing_labels) <= set(grader.labels):
        raise GraderFault(f"The passing_labels of '{grader.name}' must be among its labels.", "other_error")


def parts(grader: AnyGrader) -> list[AnyGrader]:
    """The grader itself, and those inside it."""
    return [grader, *(part for _, part in grader.by_name())] if isinstance(grader, Multi) else [grader]


def source(text: str) -> None:
    """A Python grader's source must compile and define `grade`, for two arguments. It is not executed.

    Parsing holds the interpreter's lock: a tenth of a second for 16 KB, and seconds for the largest that may be sent.
    A longer source is not looked at; its faults are found where it runs, in the sandbox.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_PARSED_BYTES:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody's string is theirs
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        what = error.msg if isinstance(error, SyntaxError) else "it cannot be parsed"
        raise GraderFault(f"The source is not valid Python: {what}{place}.", "python_grader_runtime_error") from error
    named = [node for node in tree.body if _defines_grade(node)]
    if not named:
        raise GraderFault("The source must define a function grade(sample, item).", "python_grader_runtime_error")
    last = named[-1]
    if isinstance(last, ast.AsyncFunctionDef) or (isinstance(last, ast.FunctionDef) and not _takes_two(last.args)):
        sentence = "The function grade of the source must take two arguments, sample and item."
        raise GraderFault(sentence, "python_grader_runtime_error")


def _multi(grader: Multi) -> None:
    names = [name for name, _ in grader.by_name()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise GraderFault(f"Two graders are named '{twice[0]}'; names must differ.", "other_error")
    formula.parse(grader.calculate_output, names)
    for _, part in grader.by_name():
        check(part)


def _templates(grader: StringCheck | TextSimilarity | ScoreModel | LabelModel) -> Iterator[str]:
    if isinstance(grader, StringCheck | TextSimilarity):
        yield grader.input
        yield grader.reference
    else:
        for message in grader.input:
            yield from _texts(message.content)


def _texts(content: Content) -> Iterator[str]:
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, ImagePart):
            yield part.image_url
        elif isinstance(part, AudioPart):
            yield part.input_audio.data
        else:
            yield part.text


def _defines_grade(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == "grade"
    targets = node.targets if isinstance(node, ast.Assign) else []
    imported = node.names if isinstance(node, ast.ImportFrom) else []
    return any(isinstance(target, ast.Name) and target.id == "grade" for target in targets) or any(
        (alias.asname or alias.name) == "grade" for alias in imported
    )


def _takes_two(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    fewest = positional - len(arguments.defaults)
    needs_keyword = any(default is None for default in arguments.kw_defaults)
    return fewest <= 2 and (positional >= 2 or arguments.vararg is not None) and not needs_keyword
