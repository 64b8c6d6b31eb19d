"""Searches over tables of scores and costs."""
