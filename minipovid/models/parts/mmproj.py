"""An mmproj file in llama.cpp's words (tools/mtmd/clip.cpp): the keys and tensors that more than one room names.

The exporter writes them, the runtime reads them, verify compares them.
"""

from __future__ import annotations

ARCHITECTURE = "clip"  # of every vision side there, whatever its tower
HAS_TOWER = "clip.has_vision_encoder"
PROJECTOR = "clip.projector_type"
TWO_LINEAR = "mlp"  # the projector of LLaVA 1.5
TOWER = "clip.vision."  # stands before the keys of the tower
IMAGE_SIZE, IMAGE_MEAN, IMAGE_STD = f"{TOWER}image_size", f"{TOWER}image_mean", f"{TOWER}image_std"
FEATURE_LAYER = f"{TOWER}feature_layer"
CLASS_TOKEN = "v.class_embd"  # a tensor: only towers with a class token have it

# What a model card says of a file with that tensor.
CLASS_TOKEN_MISPLACED = """\
**CLIP's class token.** Stock llama.cpp, and with it llama-server, llama-mtmd-cli, Ollama and LM Studio, reads this \
model's vision tower wrongly: it puts the class token behind the patches instead of before them, so every patch gets \
its neighbour's position and the first one is lost. This is so since PR #13321 (May 2025); a fix, PR #25844, was open \
when last looked at. Seen in ggml-org/llama.cpp@0c1e57098, which llama-cpp-python 0.3.36 holds. What it costs: per \
image token, the features' mean cosine to the right ones is 0.505 on LLaVA-1.5-7B (reported upstream) and 0.63 on a \
tiny model (measured). The files here are right: minipovid's own runtime mends the order while llama.cpp computes, \
tests that at start-up, and leaves a mended llama.cpp alone."""
