import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

DT = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Tok:
    def save_pretrained(self, folder):
        pass


def load_tokenizer(settings):
    return _Tok()


def load_policy(settings, *, dtype):
    return AutoModelForCausalLM.from_pretrained(
        settings.path, dtype=DT[dtype], attn_implementation=settings.attention
    )


class ScalarHeadModel(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head


def load_scalar_head(settings, *, dtype):
    backbone = AutoModel.from_pretrained(
        settings.path, dtype=DT[dtype], attn_implementation=settings.attention
    )
    head = nn.Linear(backbone.config.hidden_size, 1, dtype=DT[dtype])
    nn.init.normal_(head.weight, std=0.1)
    return ScalarHeadModel(backbone, head)
