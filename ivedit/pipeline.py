"""The one sampler: a frozen Wan pipeline and a trained editor turn a clip and an instruction into the edited clip.

Evaluation, ``ivedit.edit`` and the notebooks all go through here. A file::

    from ivedit.pipeline import IVEditPipeline
    pipe = IVEditPipeline.from_pretrained("wan-sprites", editor="shipped")
    pipe.edit_video("clip.mp4", "make the red circle blue", "edited.mp4")

or pixels::

    clip = ...                                          # (T, 3, H, W) float in [0, 1], T = 1 + a multiple of 4
    edited = pipe(clip, "make the red circle blue")     # the same shape
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivedit.backbone import Backbone
from ivedit.backbone.loading import storage_dtype
from ivedit.config.schema import TextConfig
from ivedit.data.text import TextStates
from ivedit.editing import Edited, edit_file, editor_settings, options_for
from ivedit.editor import Editor, EditText, load_editor, resolve_editor_file
from ivedit.errors import IveditError
from ivedit.flow import build_scheduler, clip_seeds, denoise, draw_noise, guided

__all__ = ["IVEditPipeline"]

Progress = Callable[[Iterable[int]], Iterable[int]]


class IVEditPipeline:
    """Edits clips with a frozen backbone and a trained editor.

    Args:
        backbone: With all its parts for pixels and words; the transformer alone serves `edit_latents` with ``texts``.
        editor: The trained modules; None: the frozen backbone alone, which generates from the text and reads
            nothing of the source but its shape (the control row "frozen").
        settings: What the editor was trained with, from `ivedit.editing.editor_settings`; the defaults of
            `edit_video`.
    """

    def __init__(
        self, backbone: Backbone, editor: Editor | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.backbone = backbone
        self.editor = editor
        self.settings = dict(settings or {})
        self._states: tuple[list[str], TextStates] | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path = "wan-sprites",
        editor: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        *,
        offload: bool = False,
        vae_tiling: bool = False,
        any_weights: bool = False,
    ) -> IVEditPipeline:
        """Load from disk or from the hub.

        Args:
            folder: Wan folder or hub name in diffusers' layout, or ``wan-sprites``.
            editor: A ``.safetensors`` file, a run folder, an exported folder or its hub name (USER/NAME), or
                ``shipped``; None: the frozen backbone alone.
            device: Where it runs.
            dtype: Storage type of the frozen weights; auto: bfloat16 on a GPU, float32 on a CPU.
            offload: Keep text encoder, transformer and VAE on a GPU only while each is used: the largest of them
                decides the memory, and each use starts with a copy. Without a GPU nothing changes.
            vae_tiling: Let the VAE work in overlapping tiles of 256x256 pixels: for frames that it cannot hold whole.
                Pixels differ slightly.
            any_weights: Take an editor that was trained on other weights of the same shapes (a fine-tuned backbone),
                with a warning.

        Raises:
            IveditError: The folder or the editor cannot be used, or was trained on another backbone; the message
                says why.
        """
        start = "cpu" if offload else device
        backbone = Backbone.load(folder, dtype=storage_dtype(dtype, torch.device(device)), device=start)
        found, settings = None, {}
        if editor is not None:
            file = resolve_editor_file(editor)  # once: it may lie on the hub
            found = load_editor(file, backbone, map_location=device, refuse_other_weights=not any_weights)
            settings = editor_settings(file)
        if vae_tiling:
            backbone.vae.enable_tiling()
        if offload:
            backbone.offload_to(device)
        return cls(backbone, found, settings)

    def edit_video(
        self, clip: str | Path, instruction: str, out: str | Path,
        *, progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None, **options: Any,
    ) -> Edited:  # fmt: skip
        """Edit a video or picture file, or a folder of frames, of any size, length and rate, writing it as it is made.

        Frames are scaled into the size that the editor was trained for and back; long clips go in windows that are
        cross-faded; sound is kept. What was done stands in the result's ``notes``.

        Args:
            clip: A video, a picture (.png, .jpg, ...), or a folder of frames (00000.jpg, 00001.jpg, ...) of one size;
                ``fps`` is then their rate, by default 16.
            instruction: What to change.
            out: The file to write: .mp4, or a picture for a picture; for a folder of frames also a folder, a name
                without an end, which gets the edited frames under their names.
            progress: (iterable of all denoising steps, their number) -> iterable: ``lambda i, n: tqdm(i, total=n)``.
            options: Fields of `ivedit.editing.EditOptions` (steps, guidance, scale, seed, size, window, fps, ...) in
                place of what the editor was trained and evaluated with; ``side_by_side=True`` also writes source and
                result beside each other.

        Raises:
            IveditError: A clip that cannot be read, an output that cannot be written, sizes that do not fit.
            TypeError: An option that there is not.
        """
        known = {"backbone": self.backbone.spec.name, "side_by_side": False}
        return edit_file(self, clip, instruction, out, options_for(self.settings, known, **options), progress=progress)

    def __call__(
        self,
        pixels: Tensor,
        instructions: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        steps: int = 25,
        guidance: float = 1.0,
        scheduler: str = "euler",
        shift: float | None = None,
        scale: float = 1.0,
        target_captions: Sequence[str] | None = None,
        gate_instructions: Sequence[str] | None = None,
        text: TextConfig | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Edit clips of pixels.

        Args:
            pixels: (B, T, 3, H, W), or (T, 3, H, W) for one clip; float in [0, 1].
            instructions: One per clip, or one for all.
            seeds, steps, guidance, scheduler, shift, scale, target_captions, gate_instructions, text, progress: See
                `edit_latents`.

        Returns:
            Float32 pixels in [0, 1] on the backbone's device, in the shape of ``pixels``.

        Raises:
            IveditError: Sizes that the VAE or the patches do not divide, frames other than 1 + a multiple of the
                time factor, or texts and clips that do not match.
        """
        if pixels.ndim not in (4, 5) or pixels.shape[-3] != 3:
            raise IveditError(f"a clip must be (T, 3, H, W) or (B, T, 3, H, W), not {tuple(pixels.shape)}")
        if not pixels.is_floating_point():
            raise IveditError(f"pixels must be floating point in [0, 1], not {pixels.dtype}: divide by 255")
        clips = pixels if pixels.ndim == 5 else pixels[None]
        source = self.backbone.encode_pixels(clips)
        words = [instructions] * len(clips) if isinstance(instructions, str) else list(instructions)
        edited = self.edit_latents(
            source, words, seeds=seeds, steps=steps, guidance=guidance, scheduler=scheduler, shift=shift,
            scale=scale, target_captions=target_captions, gate_instructions=gate_instructions, text=text,
            progress=progress,
        )  # fmt: skip
        result = self.backbone.decode_latents(edited)
        return result if pixels.ndim == 5 else result[0]

    @torch.no_grad()
    def edit_latents(
        self,
        source_latents: Tensor,
        instructions: Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        steps: int = 25,
        guidance: float = 1.0,
        scheduler: str = "euler",
        shift: float | None = None,
        scale: float = 1.0,
        target_captions: Sequence[str] | None = None,
        gate_instructions: Sequence[str] | None = None,
        text: TextConfig | None = None,
        progress: Progress | None = None,
        start: tuple[Tensor, float] | None = None,
        noise: Tensor | None = None,
        compile: bool = False,
        notes: list[str] | None = None,
    ) -> Tensor:
        """Edit clips of latents. The source is read once, whatever the steps and the guidance.

        Args:
            source_latents: (B, Z, F, h, w) normalised latents of the source clips.
            instructions: B edit instructions.
            seeds: B noise seeds, so that a clip's result does not depend on its neighbours; one number s stands for
                ``clip_seeds(s, range(B))``.
            steps: Denoising steps.
            guidance: ``v_neg + w (v_pos - v_neg)``; the negative branch reads the encoding of "" and the same
                source features. 1: no second branch.
            scheduler: ``euler`` or ``unipc``.
            shift: Flow shift; None: the backbone folder's.
            scale: Multiplies what the editor's modules add; 0 is the frozen backbone, reading the same texts.
            target_captions: B captions of the wanted result, for ``text.target=target_caption`` and, where given, for
                the frozen backbone.
            gate_instructions: What the edit modules read in place of the instructions, for ``text.gate=shuffled``.
            text: Which words go where; None: the defaults of `TextConfig`.
            progress: Wraps the iterable of step numbers.
            start: (latents, sigma): begin from these latents noised to sigma in place of pure noise, with all
                ``steps`` below it.
            noise: (B, Z, F, h, w) standard normal to start from in place of the seeds' own, for windows of one clip
                that are to agree where they overlap.
            compile: Compile the backbone's blocks: pays from some hundred steps of one size on.
            notes: Takes what is to be told of the memory that the source needs, in words, where it is much.

        Returns:
            (B, Z, F, h, w) float32 latents on the backbone's device.

        Raises:
            IveditError: Numbers of clips, texts and seeds differ, or a text that the settings need is missing.
        """
        count = len(source_latents)
        numbers = clip_seeds(seeds, range(count)) if isinstance(seeds, int) else [int(s) for s in seeds]
        for name, given in (
            ("instructions", instructions), ("seeds", numbers), ("target_captions", target_captions),
            ("gate_instructions", gate_instructions),
        ):  # fmt: skip
            if given is not None and len(given) != count:
                raise IveditError(f"{count} clips need {count} {name}, not {len(given)}")
        device = self.backbone.device
        source = source_latents.to(device, torch.float32)
        self.backbone.grid(source)  # refuses sizes that the patches do not divide
        if noise is not None and noise.shape != source.shape:
            raise IveditError(f"the noise has shape {tuple(noise.shape)}, the source latents {tuple(source.shape)}")
        noise = (draw_noise(source.shape[1:], numbers) if noise is None else noise).to(device)
        solver = build_scheduler(scheduler, self.backbone.scheduler_config, shift or self.backbone.spec.shift)
        if start is not None:
            start = (start[0].to(device, torch.float32), start[1])
        with self.backbone.compiling(compile):
            velocity = self._velocity(
                source, self._words(instructions, target_captions, gate_instructions, text or TextConfig()),
                guidance=guidance, scale=scale, notes=notes,
            )  # fmt: skip
            return denoise(velocity, noise, solver, steps, progress, start)

    def _words(
        self,
        instructions: Sequence[str],
        captions: Sequence[str] | None,
        gate_instructions: Sequence[str] | None,
        text: TextConfig,
    ) -> tuple[list[str], list[str], list[str]]:
        """What target stream, edit modules and source stream read."""
        if self.editor is None:
            words = list(captions if captions is not None else instructions)
            return words, words, words
        if text.target == "target_caption" and captions is None:
            raise IveditError("text.target=target_caption needs the captions of the wanted results (target_captions)")
        if text.gate == "shuffled" and gate_instructions is None:
            raise IveditError("text.gate=shuffled needs other clips' instructions (gate_instructions)")
        target = captions if text.target == "target_caption" and captions is not None else instructions
        gate = gate_instructions if text.gate == "shuffled" and gate_instructions is not None else instructions
        source = instructions if text.source == "instruction" else [""] * len(instructions)
        return list(target), list(gate), list(source)

    def _velocity(
        self,
        source: Tensor,
        words: tuple[list[str], list[str], list[str]],
        *,
        guidance: float,
        scale: float,
        notes: list[str] | None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity field of these clips; both guidance branches share one source context."""
        target, gate, read_by_source = words
        states = self._encode(dict.fromkeys([*target, *gate, *read_by_source, ""]))
        target_states = states(target)
        # One object where the texts are the same: the editor then embeds them once.
        gate_states = target_states if gate == target else states(gate)
        # One text for all sources is read once.
        of_source = states(read_by_source[:1] if len(set(read_by_source)) == 1 else read_by_source)
        positive = EditText(target_states, gate_states, of_source)
        dropped = states([""] * len(target))
        negative = EditText(dropped, dropped, positive.source)
        backbone, editor = self.backbone, self.editor
        if editor is None or scale == 0:

            def branch(x: Tensor, sigma: Tensor, text: EditText) -> Tensor:
                return backbone.velocity(x, sigma, text.target)

        else:
            context = editor.prepare(backbone, source, positive, project=True)
            if notes is not None and context.note:
                notes.append(context.note)

            def branch(x: Tensor, sigma: Tensor, text: EditText) -> Tensor:
                return editor.velocity(backbone, x, sigma, context, text, scale=scale)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            v = branch(x, sigma, positive)
            return v if guidance == 1.0 else guided(v, branch(x, sigma, negative), guidance)

        return velocity

    def _encode(self, texts: Iterable[str]) -> Callable[[Sequence[str]], TextStates]:
        """Encode each different text once; returns the look-up from texts to their states."""
        different = list(texts)
        # The windows of one clip read the same texts. Kept as a whole, so that no result depends on earlier calls.
        if self._states is None or self._states[0] != different:
            self._states = different, self.backbone.encode_text(different).to(self.backbone.device)
        states = self._states[1]
        place = {text: i for i, text in enumerate(different)}
        return lambda wanted: states[[place[text] for text in wanted]]
