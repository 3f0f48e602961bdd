"""Which pairs of initial and lead time a forecast has, written and finished."""

import json

import numpy as np

from jigsaw_forecast.verify.archive import Archive, Mask, Spans, Times

FINISHED_ATTRIBUTE = "finished_lead_times"  # of our own forecast stores


def existing_pairs(archive: Archive, name: str, inits: Times, leads: Spans) -> Mask:
    """Which pairs of the score an archive has, written and finished."""
    one = archive.variables[name]
    exists = one.exists.copy()
    absent = archive.absent(name)
    if absent is not None:
        # a lead time that no initial time has, while other variables have it, was never meant to
        # be there, such as precipitation at lead time zero: it is scored as missing values
        others = [archive.absent(other) for other in archive.variables if other != name]
        same = [o for o in others if o is not None and o.shape == absent.shape]
        never = absent.all(axis=0) & ~np.array(
            [all(o[:, lead].all() for o in same) for lead in range(absent.shape[1])]
        )
        exists &= ~absent | never[None, :]
    found = np.zeros((inits.size, leads.size), dtype=bool)
    rows, columns = np.isin(inits, one.init_times), np.isin(leads, one.lead_times)
    own_rows = np.searchsorted(one.init_times, inits[rows])
    own_columns = np.searchsorted(one.lead_times, leads[columns])
    found[np.ix_(rows, columns)] = exists[np.ix_(own_rows, own_columns)]
    done = _finished(archive.attributes.get(FINISHED_ATTRIBUTE))
    if done is not None:
        for i, j in np.argwhere(found):
            found[i, j] = (inits[i], leads[j]) in done
    return found


def _finished(text: str | None) -> set[tuple[np.datetime64, np.timedelta64]] | None:
    if text is None:
        return None
    try:
        entries = json.loads(text.replace("'", '"'))
        return {
            (np.datetime64(init, "s"), np.timedelta64(int(hours) * 3600, "s"))
            for init, hours in entries
        }
    except (ValueError, TypeError):
        return None
