"""A task of lmms-eval that asks yes/no questions of a file of rows."""

LMMS_TASK = """
task: mini_pope
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_visual: !function mini_pope.picture
doc_to_text: "{{question}}"
doc_to_target: "{{gold}}"
generation_kwargs: {max_new_tokens: 10, temperature: 0, do_sample: false}
process_results: !function mini_pope.scores
metric_list: [{metric: exact, aggregation: mean, higher_is_better: true}]
metadata: [{version: 0}]
"""
LMMS_CODE = """
from PIL import Image

def picture(doc):
    return [Image.open(doc["path"])]

def scores(doc, results):
    return {"exact": float(results[0] == doc["gold"])}
"""
