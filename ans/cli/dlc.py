"""DLC-Bench: `python -m ans dlc FOLDER --url http://localhost:8000/v1 --judge meta-llama/Meta-Llama-3.1-8B-Instruct -o dlc.json`.

The model describes every region of the benchmark in FOLDER (nvidia/DLC-Bench), and the judge, a language model behind an address that
speaks OpenAI's chat protocol, answers the benchmark's questions about the descriptions. Result, descriptions and the protocol, with the
judge's name, go to OUT; the judge's answers to OUT.answers.jsonl, so that a stopped run goes on. A key is read from $OPENAI_API_KEY.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

HELP = "DLC-Bench: descriptions of regions, judged by a language model of your choice"


def arguments(parser: argparse.ArgumentParser) -> None:
    from ans.cli import model

    model.loading(parser)
    parser.set_defaults(max_new_tokens=512)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="DLC-Bench, as published")
    parser.add_argument("--url", required=True, metavar="URL", help="the judge's address, up to and with /v1")
    parser.add_argument("--judge", required=True, metavar="NAME", help="the judge's name there")
    parser.add_argument(
        "--question", metavar="TEXT", help="what the model is asked about region1 (default: what evaluation asks)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="a JSON file")


def run(chosen: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ans.cli.model import load_model
    from ans.evaluation import dlc
    from ans.evaluation.protocol import protocol_fingerprint, weights_checksum
    from ans.model import prompts

    regions = dlc.read(chosen.folder)
    question = chosen.question or prompts.DESCRIBE_PROMPT
    about = dlc.protocol(chosen.folder, chosen.judge, question, chosen.max_new_tokens, weights_checksum(chosen.model))
    judge = dlc.HttpJudge(
        chosen.url, chosen.judge, os.environ.get("OPENAI_API_KEY", ""), chosen.out.with_name(f"{chosen.out.name}.answers.jsonl")
    )
    said = dlc.describe(load_model(chosen), chosen.folder, regions, question, chosen.max_new_tokens)
    scores = {
        region.number: dlc.judged(region, said[region.number], judge) for region in tqdm(regions, desc="judge", disable=None)
    }
    found = dlc.metrics(list(scores.values())) | {"protocol": protocol_fingerprint(about)}
    rows = {number: {"description": said[number], **asdict(score)} for number, score in scores.items()}
    dlc.write(chosen.out, {"metrics": found, "protocol": about, "regions": rows})
    print(json.dumps(found, indent=2))
