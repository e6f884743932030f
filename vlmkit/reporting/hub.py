"""The last checkpoint of a run for others: its model card, and if asked for a repository of the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi

from vlmkit.config import TrainConfig
from vlmkit.errors import UserError
from vlmkit.paths import TRAINER_STATE, RunPaths
from vlmkit.reporting.card import write_card
from vlmkit.tracking.console import Screen


def publish(
    config: TrainConfig,
    paths: RunPaths,
    step: int,
    tokens: int,
    data: str,
    screen: Screen,
) -> None:
    """Write the card of the run's last checkpoint, and upload that if ``push_to_hub`` names a repository.

    The arguments are those of ``write_card``.

    Raises:
        UserError: The upload failed.
    """
    write_card(config, paths, step, tokens, data)
    if config.push_to_hub:
        screen.say(f"uploaded    {push(paths.checkpoint(step), config.push_to_hub)}")


def push(checkpoint: Path, repo: str) -> str:
    """Upload a checkpoint without its trainer state; a repository that is not there is made, private.

    It can be done again: what is there already is not sent twice.

    Returns:
        Where it is now.

    Raises:
        UserError: It did not arrive.
    """
    try:
        api = HfApi()
        created = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=checkpoint,
            ignore_patterns=f"{TRAINER_STATE}/*",
            commit_message=f"{checkpoint.name}, uploaded by vlmkit",
        )
    except Exception as error:  # of the network, of the server's answers, of files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"push_to_hub={repo}: {reason}; {checkpoint} is whole, the same command tries again") from error
    return str(created)
