"""Whether the hub answers: without a network its client would try for half a minute."""

import logging
import os
import sys
import threading

SECONDS = 2.0
"""How long to wait for an answer, unless HF_HUB_ETAG_TIMEOUT says otherwise."""
_log = logging.getLogger(__name__)


def offline_without_answer() -> bool:
    """Use only what was downloaded before, from now on, if the hub does not answer.

    This is what the environment variable HF_HUB_OFFLINE=1 does. The hub's client has no
    setting for the number of its trials.

    Returns:
        Whether it is so now.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _answers():
        _log.info("the hub does not answer: only downloaded files are used")
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # else it reads the line above
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return constants.HF_HUB_OFFLINE


def _answers() -> bool:
    from huggingface_hub import constants, get_session

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or SECONDS)
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))
        except Exception as error:  # whatever is wrong, there is no answer
            _log.debug("no answer from the hub: %s", error)

    # a thread, because the timeout does not hold while a name is looked up
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
