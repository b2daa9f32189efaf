"""Ask about a video.

python docs/examples/langchain/video_question.py clip.mp4 "What happens?"
python docs/examples/langchain/video_question.py clip.mp4 "What happens?" --model Qwen/Qwen2.5-VL-7B-Instruct

It needs a model that takes videos (LLaVA-OneVision, LLaVA-NeXT-Video, Qwen2-VL to Qwen3-VL; mini does not) and, for
files, ``pip install 'tops-engine[video]'``. A video has many visual tokens, so pruning saves most here.
"""

import argparse
from collections.abc import Sequence

from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava

from tops_engine.errors import InvalidInput


def video_message(path: str, question: str, num_frames: int) -> HumanMessage:
    """Return a question about so many frames of a video, spread evenly."""
    video = {"type": "video", "url": path, "extras": {"num_frames": num_frames}}
    return HumanMessage([video, {"type": "text", "text": question}])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("--model", default="llava-hf/llava-onevision-qwen2-7b-ov-hf")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.222, help="fraction of the visual tokens to keep")
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model=given.model, keep=given.keep)
    if not (model.profile or {}).get("video_inputs", True):
        raise InvalidInput(f"{given.model} takes no videos; give --model one that does.")
    answer = model.invoke([video_message(given.video, given.question, given.frames)])
    usage = answer.response_metadata["usage"]
    print(answer.text)
    print(f"{usage['visual_tokens']} visual tokens, {usage['layer_average']:.0f} of them on a layer's average")


if __name__ == "__main__":
    main()
