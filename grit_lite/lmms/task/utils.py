"""What the task in this folder does with a document and an answer, by the rules of grit-lite."""

from grit_lite.scorers import is_right


def doc_to_visual(doc):
    return [image.convert("RGB") for image in doc["images"]]


def process_results(doc, results):
    return {"accuracy": {"score": float(is_right(results[0], doc["answer"])), "cluster": doc["cluster"]}}


def mean_score(results):
    return sum(result["score"] for result in results) / len(results)
