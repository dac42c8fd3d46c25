"""Models that load from a run's folder or the Hugging Face Hub alone, and are saved with a card."""

import os
from dataclasses import fields, replace
from pathlib import Path

import torch
from huggingface_hub import ModelCard, hf_hub_download

from common.checkpoint import read_weights, save_model
from common.device import keep_freed_memory
from common.model_card import model_card
from common.options import UserError


class PretrainedMixin:
    """What the models of all systems share: a device, a count, and `from_pretrained` of a folder or the Hub.

    Stands before huggingface_hub's PyTorchModelHubMixin in a class's bases.
    """

    tokenizer = None
    card = None  # a common.model_card.Card
    loaded_from = ""  # folder or name on the Hub
    on_meta = True  # can it be built without memory?

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def n_params(self) -> int:
        """Trained parameters; a tied embedding and head count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def read_tokenizer(self, find) -> None:
        """Set `tokenizer` from the checkpoint, where there is one; find(name) -> path of one of its files."""

    def _save_pretrained(self, folder):
        private = {
            f.name: f.default for f in fields(self.config) if f.name in ("run", "data_dir", "init", "pretrain")
        }  # paths of here
        save_model(self, replace(self.config, **private), folder)

    def save_pretrained(self, save_directory, **options):
        """As huggingface_hub's, with a model card from the run's own JSON."""
        options["model_card_kwargs"] = {"where": str(save_directory)} | (options.get("model_card_kwargs") or {})
        return super().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id, **options):
        """As huggingface_hub's, with a model card from the run's own JSON."""
        options["model_card_kwargs"] = (options.get("model_card_kwargs") or {}) | {"where": repo_id}
        return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, where: str) -> ModelCard:
        """Called by the mixin's `save_pretrained`."""
        metadata = f"---\n{self._hub_mixin_info.model_card_data.to_yaml()}\n---\n\n"
        return ModelCard(metadata + model_card(self, where))

    @classmethod
    def _from_pretrained(cls, *, model_id, config, map_location="cpu", **hub):
        """Called by the mixin's `from_pretrained`: a run's folder or a repository on the Hub -> model, in eval mode."""
        hub = {k: hub[k] for k in ("revision", "cache_dir", "force_download", "token", "local_files_only") if k in hub}

        def find(name):
            return os.path.join(model_id, name) if os.path.isdir(model_id) else hf_hub_download(model_id, name, **hub)

        tensors = read_weights(find("model.safetensors"), map_location)
        with torch.device("meta" if cls.on_meta else "cpu"):  # a wrong config.json may ask for any amount of memory
            model = cls(config)
        expected, found = ({k: tuple(v.shape) for k, v in x.items()} for x in (model.state_dict(), tensors))
        if wrong := sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)):
            shapes = f"{wrong[0]} has shape {found.get(wrong[0])}, not {expected.get(wrong[0])}"
            raise UserError(f"{model_id}: model.safetensors does not fit config.json: {shapes}")
        model = cls(config) if cls.on_meta else model
        model.load_state_dict(tensors)
        model.read_tokenizer(find)
        model.loaded_from = model_id
        return model.to(map_location).eval()


def load_checkpoint(cls, folder: str | Path, device: torch.device | str):
    """The model `cls` of a folder, in eval mode."""
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    return cls.from_pretrained(folder, map_location=str(device))
