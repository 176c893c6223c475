"""`python -m dssnet_fast`: lists the commands."""

import dssnet_fast

COMMANDS = {
    "segment": "images -> label maps, overlays, nuclei as GeoJSON and CSV",
    "wsi": "whole slides -> nuclei for QuPath, tables, label pyramids, reports",
    "view": "results of whole slides, in the browser",
    "convert": "a checkpoint -> a weight file (and ONNX), verified",
    "train": "labelled images -> a checkpoint",
    "study": "the paper's studies: networks and recipes trained side by side",
    "evaluate": "how right networks are, beside the truth and one another",
    "bench": "speed of every backend beside the reference and UNet",
    "info": "what this installation can run, and why not the rest",
}

if __name__ == "__main__":
    print(f"dssnet_fast {dssnet_fast.__version__}")
    for name, does in COMMANDS.items():
        print(f"  python -m dssnet_fast.{name:<8} {does}")
