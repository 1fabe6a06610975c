"""`share`: results to and from the data set that several people and machines share."""

from __future__ import annotations

from quant_engine.commands.options import console, errors
from quant_engine.runs import shared
from quant_engine.spec import UserError


def share() -> None:
    """Fetch the runs of the shared data set (LOWBIT_SHARED) that are not here, and add those made here.

    Added are runs that others can make again: of models, tasks and texts that have a name here, not of files of yours.
    """
    repository = shared.repository()
    if repository is None:
        raise UserError("No data set is named: set LOWBIT_SHARED to OWNER/NAME of one on the Hugging Face Hub.")
    exchanged = shared.exchange(repository)
    for refusal in exchanged.refused:
        errors.print(refusal, highlight=False, markup=False, soft_wrap=True)
    count = len(exchanged.fetched)
    runs = f"{count} run{'s' * (count != 1)} fetched, {len(exchanged.added)} added"
    console.print(f"{runs} ({repository}).", highlight=False)
