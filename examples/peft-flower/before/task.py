"""Model, data and training of an ordinary PEFT app: LoRA on a frozen ViT, one task."""

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

CLASSES = {"stripes": 2, "colours": 3}


def get_model(task):
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(**size, intermediate_size=64, num_labels=CLASSES[task]))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    return get_peft_model(model, lora)


def get_data(task, node, count=64):
    """Pictures of 8 x 8: stripes one way or the other, or one bright colour."""
    draw = torch.Generator().manual_seed(node)
    labels = torch.randint(CLASSES[task], (count,), generator=draw)
    images = 0.3 * torch.randn(count, 3, 8, 8, generator=draw)
    for image, label in zip(images, labels, strict=True):
        if task == "stripes":
            (image[:, ::2] if label else image[:, :, ::2]).add_(1)
        else:
            image[label].add_(1)
    return images, labels


def get_arrays(model):
    return get_peft_model_state_dict(model)


def set_arrays(model, arrays):
    set_peft_model_state_dict(model, arrays)


def train(model, images, labels, epochs=4):
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.arange(len(labels)).split(16):
            loss = cross_entropy(model(pixel_values=images[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model, images, labels):
    return (model(pixel_values=images).logits.argmax(1) == labels).float().mean().item()
