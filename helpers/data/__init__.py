"""Examples in: files and data sets in any known form become records, and records become three parts.

data = load_data("tickets.csv", columns="instruction=text,output=label")
split = split_data(data.records, test_size=0.2, validation_size=0.1, seed=42)
assert split.count_leaks() == 0
split.save("runs/mine/split")               # train.json, validation.json, test_set.json
"""

from helpers.data.duplicates import find_duplicates
from helpers.data.records import load_data, load_json_files
from helpers.data.split import load_part, split_data

__all__ = ["find_duplicates", "load_data", "load_json_files", "load_part", "split_data"]
