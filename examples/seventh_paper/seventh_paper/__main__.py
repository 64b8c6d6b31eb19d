"""`python -m seventh_paper`: train what is not trained yet, draw the figure, judge the claim."""

from seventh_paper.figures import accuracy
from seventh_paper.recipes import STAGES
from slimnb import load_data
from slimnb.book.claims import judge, paired
from slimnb.book.registered import claims_of
from slimnb.book.style import save
from slimnb.runs.results import results_frame
from slimnb.runs.store import RunStore
from slimnb.train.experiment import study

results = study(STAGES, "smoke", range(1), load_data("synthetic"), RunStore("data/runs"))
frame = results_frame(results)
print(save(accuracy(frame, "Draws by cost or uniform draws"), "build/figures/seventh/accuracy.svg").path)
for claim in claims_of("seventh").values():
    print(judge(claim, *paired(frame, claim), scale="smoke"))
