"""Ask a checkpoint about a picture; the answer streams to the terminal.

    python -m vlmkit.generate ckpt=RUN/checkpoints/step_N image=shape.png prompt='what shape is it?'
    python -m vlmkit.generate ckpt=RUN image=PICTURES prompt='what is it?' out=answers.jsonl   each picture of a folder
    python -m vlmkit.generate ckpt=RUN image=[a.png,b.png] prompt='what differs?' temperature=0.7 top_p=0.9 seed=1
    python -m vlmkit.generate ckpt=RUN prompt='how are you?'                                   no picture

``ckpt`` is a run directory (its newest checkpoint), a folder or a hub id with a vlmkit, nanoVLM or SmolVLM checkpoint.

Read next: ``model/answer.py`` (a question and its answer), ``model/packed.py`` (the model that generates).
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit import entry
from vlmkit.config import GenerateConfig, as_override
from vlmkit.errors import ConfigError, UserError
from vlmkit.local_files import find_pictures, newest_of_run
from vlmkit.preflight import check_generation
from vlmkit.redact import redact

if TYPE_CHECKING:
    from vlmkit.model.answer import Answerer


def generate(config: GenerateConfig) -> int:
    """Answer the prompt about each picture of a folder, or about all named together.

    A question that cannot be answered is a line on standard error; the others are.

    Returns:
        How many could not be answered.
    """
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.model.answer import load_answerer
    from vlmkit.tracking.quiet import quiet_libraries

    quiet_libraries()
    checkpoint = newest_of_run(config.ckpt)
    if checkpoint != config.ckpt:
        _say(f"asking {checkpoint}")
    answerer = load_answerer(checkpoint)
    questions = find_pictures(config.image)
    failed = 0
    with Path(config.out).expanduser().open("w", encoding="utf-8") if config.out else nullcontext() as out:
        for pictures in questions:
            named = len(questions) > 1
            if named:
                print(f"{pictures[0].name}: ", end="", flush=True)  # noqa: T201
            try:
                answer = _ask(answerer, pictures, config)
            except UserError as error:
                print(end="\n" if named else "", flush=True)  # noqa: T201
                _say(f"error: {error}")
                failed += 1
                continue
            if out:
                line = {"images": [str(path) for path in pictures], "prompt": config.prompt, "answer": answer}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                out.flush()
    return failed


def _ask(answerer: "Answerer", pictures: Sequence[Path], config: GenerateConfig) -> str:
    """Answer the prompt about some pictures together, and print the answer while it is made.

    Raises:
        BadSampleError: A picture cannot be read.
        ConfigError: Question and answer are longer than what the model can take.
    """
    from vlmkit.model.answer import GenerationSettings, Question
    from vlmkit.processing.images import load_image

    question = Question.about([load_image(path, str(path)) for path in pictures], config.prompt)
    settings = GenerationSettings(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
    prompt = answerer.prepare(question, settings)
    if config.max_new_tokens > prompt.room:
        raise ConfigError(
            f"max_new_tokens={config.max_new_tokens}: must be at most {prompt.room}: the question has "
            f"{len(prompt.ids)} tokens, the model takes {prompt.room + len(prompt.ids)} with the answer"
        )
    if prompt.shrunk:
        _say("the pictures are shown in fewer tiles than usual: the model takes no more")
    [answer] = answerer.answer([prompt], settings, [config.seed], stream=True)
    return answer.text


def main() -> None:
    """The command."""
    sys.argv = [sys.argv[0], *map(quoted, sys.argv[1:])]
    entry.run("generate", _start)


def quoted(argument: str) -> str:
    """An argument as Hydra must read it: all of a prompt, or of the name of a file that is there, is only text."""
    name, _, value = argument.partition("=")
    if name != "prompt" and not (name in ("image", "ckpt", "out") and Path(value).expanduser().exists()):
        return argument
    return f"{name}={as_override(value)}"


def _start(config: GenerateConfig, _invocation: entry.Invocation) -> None:
    check_generation(config)
    if generate(config):
        sys.exit(1)


def _say(text: str) -> None:
    """A line beside the answers, which alone are on standard output."""
    print(redact(text), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
