"""What each chapter trains, stage by stage: one module per chapter, named as the chapter's file is.

A module's `STAGES` are functions (scale, seed, data, results, store) -> recipes. A stage sees the results of the stages
before it, so that a recipe may hold what a search found or what pruning left.
"""
