"""Training heads around [`SeedModel`]: BLIP-2-style pretraining, stage I (contrastive), stage II (quantisation)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_seed import SeedConfig
from .losses_seed import (
    captioning_loss,
    contrastive_loss,
    contrastive_targets,
    generation_loss,
    matching_loss,
    query_similarity,
    reconstruction_loss,
)
from .modeling_seed import SeedModel, SeedPreTrainedModel
from .quantization_seed import count_codes

# The released start of the learned temperature.
INITIAL_TEMPERATURE = 0.07
# CLIP's bound, 1 / 100: a lower temperature makes the similarities explode.
MIN_TEMPERATURE = 0.01


@dataclass
class SeedTrainingOutput(ModelOutput):
    """
    The output of a training head.

    Args:
        loss (`torch.FloatTensor`): scalar to minimise.
        losses (`dict[str, torch.Tensor]`): the loss's named terms, unweighted and detached, and other values to log.
        codes (`torch.LongTensor` of shape `(batch, num_codes)`): the codes of the images; stage II only.
        code_counts (`torch.LongTensor` of shape `(codebook_size,)`): how often each code occurs in this process's
            batch; stage II only.
    """

    loss: torch.FloatTensor | None = None
    losses: dict | None = None
    codes: torch.LongTensor | None = None
    code_counts: torch.LongTensor | None = None


class SeedForContrastiveLearning(SeedPreTrainedModel):
    """
    Stage I: the Causal Q-Former's last embedding learns to agree with the caption (paper, section 3.1).

    Args:
        label_smoothing: smoothing of the contrastive targets; 0.1 in the released recipe.
    """

    main_input_name = "input_ids"
    label_smoothing = 0.1

    def __init__(self, config: SeedConfig):
        super().__init__(config)
        self.model = SeedModel(config)
        self.temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.temperature, INITIAL_TEMPERATURE)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        groups: torch.LongTensor,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> SeedTrainingOutput:
        """
        Compute the contrastive loss of a batch.

        Args:
            input_ids, attention_mask: `(batch, length)`, one caption per image.
            groups: `(batch,)`; images of one concept share a number and are positives of each other's captions.
            pixel_values: `(batch, 3, height, width)`, or cached `vision_features` `(batch, patches, dim)`.
        """
        image_features = self.model.get_image_features(pixel_values, vision_features=vision_features)
        loss, losses = self._contrast(image_features, input_ids, attention_mask, groups)
        return SeedTrainingOutput(loss=loss, losses=losses)

    def _contrast(self, image_features, input_ids, attention_mask, groups):
        text_features = self.model.get_text_features(input_ids, attention_mask)
        all_images, all_texts = gather_with_gradient(image_features), gather_with_gradient(text_features)
        all_groups = gather_with_gradient(groups)
        # A clamp alone would have no gradient beyond the bound.
        temperature = self.temperature + (self.temperature.clamp(min=MIN_TEMPERATURE) - self.temperature).detach()
        targets = contrastive_targets(groups, all_groups)
        loss = contrastive_loss(
            image_features,
            text_features,
            all_images,
            all_texts,
            temperature,
            image_targets=targets,
            text_targets=targets,
            label_smoothing=self.label_smoothing,
        )
        with torch.no_grad():
            best = query_similarity(image_features, all_texts).argmax(dim=1)
            recall = (all_groups[best] == groups).float().mean()
        return loss, {"contrastive": loss.detach(), "batch_recall": recall, "temperature": temperature.detach()}


class SeedForImageTextPretraining(SeedForContrastiveLearning):
    """
    BLIP-2-style pretraining of a bidirectional Q-Former on a frozen vision model: contrastive, matching and captioning
    losses (BLIP-2, section 3.2), from which SEED's stage I starts.

    Args:
        grounded_fraction: share of each batch on which matching and captioning are computed (our choice; BLIP-2 uses
            all of it). They cost about three times the contrastive loss per pair.
    """

    grounded_fraction = 1.0

    def __init__(self, config: SeedConfig):
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.matching_head = nn.Linear(width, 2)
        self.captioning_transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        groups: torch.LongTensor,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> SeedTrainingOutput:
        """Compute the three losses; the arguments are those of [`SeedForContrastiveLearning.forward`]."""
        features = self.model.encode_vision(pixel_values, vision_features)
        queries = self.model.qformer(features)
        image_features = nn.functional.normalize(self.model.vision_projection(queries).float(), dim=-1)
        if self.config.qformer_config.causal:
            image_features = image_features[:, -1]
        loss, losses = self._contrast(image_features, input_ids, attention_mask, groups)

        count = max(2, round(self.grounded_fraction * len(input_ids)))
        part = slice(0, count)
        with torch.no_grad():
            text_features = self.model.get_text_features(input_ids[part], attention_mask[part])
            similarity = query_similarity(image_features[part].detach(), text_features) / losses["temperature"]
        matching = self._match(features[part], input_ids[part], attention_mask[part], groups[part], similarity)
        captioning = self._caption(features[part], input_ids[part], attention_mask[part])
        losses |= {"matching": matching.detach(), "captioning": captioning.detach()}
        return SeedTrainingOutput(loss=loss + matching + captioning, losses=losses)

    def _match(self, features, input_ids, attention_mask, groups, similarity):
        """
        Return the loss of telling true pairs from pairs with hard negative texts, which are drawn by similarity among
        the texts of other concepts. BLIP-2 also draws hard negative images; we leave them out, which halves the cost.

        Args:
            similarity: `(batch, batch)`, of images and texts, divided by the temperature as in the contrastive loss.
                Cosines alone would draw nearly at random.
        """
        weights = similarity.float().softmax(dim=1).masked_fill(groups[:, None] == groups[None, :], 0.0) + 1e-9
        wrong_text = torch.multinomial(weights, 1).squeeze(1)
        words = torch.cat([input_ids, input_ids[wrong_text]])
        mask = torch.cat([attention_mask, attention_mask[wrong_text]])
        hidden_states = self.model.qformer(torch.cat([features, features]), words, mask)
        logits = self.matching_head(hidden_states[:, : self.config.num_codes]).mean(dim=1)
        # In a batch of one concept there is no true negative, and a drawn pair of the same concept is a match.
        negative_is_match = groups[wrong_text] == groups
        labels = torch.cat([torch.ones_like(negative_is_match, dtype=torch.long), negative_is_match.long()])
        return matching_loss(logits, labels)

    def _caption(self, features, input_ids, attention_mask):
        hidden_states = self.model.qformer(features, input_ids, attention_mask, causal_text=True)
        words = self.captioning_transform(hidden_states[:, self.config.num_codes :])
        logits = nn.functional.linear(words, self.model.qformer.word_embeddings.weight)  # tied, as BERT's
        return captioning_loss(logits, input_ids.masked_fill(attention_mask == 0, -100))


class SeedForQuantization(SeedPreTrainedModel):
    """
    Stage II: codebook, reconstruction decoder, generation decoder and Reverse Q-Former on a frozen stage I (paper,
    section 3.2).

    The settings are class attributes with the released recipe's values; a training script overrides them on the
    instance.

    Args:
        quantization_weight, generation_weight, reconstruction_weight: factors of the three losses, 5, 0.5 and 2.
        last_reconstruction_weight: weight of the last causal embedding, which is the image feature of retrieval, in the
            reconstruction loss, beside the mean over all (our choice; 0 in the released recipe).
        pca_initialization: start the encode and decode layers on the principal components of the causal embeddings (our
            choice, because in short trainings a random start leaves much of the code vectors' width unused; off in the
            released recipe).
        prefix_probability: share of the training examples that show the decoders only their first k codes, k uniform in
            1 .. num_codes (our choice, so that prefixes can be drawn; 0 in the released recipe).
        kmeans_initialization: put the codebook on the data before training starts (our choice; off in the released
            recipe). `initialize_from_embeddings` does both initialisations.
        revival_interval: number of training forward passes after which codes without a hit are revived; 0 (released)
            never revives. With gradient accumulation one step of the optimiser has several forward passes.

    Raises:
        ValueError: the config switches off the reconstruction decoder, which is trained here.
    """

    quantization_weight = 5.0
    generation_weight = 0.5
    reconstruction_weight = 2.0
    last_reconstruction_weight = 0.0
    pca_initialization = False
    prefix_probability = 0.0
    kmeans_initialization = False
    revival_interval = 0

    def __init__(self, config: SeedConfig):
        if not config.use_reconstruction_decoder:
            raise ValueError(
                "use_reconstruction_decoder is False in the config; stage II trains the reconstruction decoder. Start "
                "from stage I's model, or set use_reconstruction_decoder=True and name 'model.reconstruction_decoder' "
                "in from_pretrained's new_modules."
            )
        super().__init__(config)
        self.model = SeedModel(config)
        # They are part of the checkpoint, so that a resumed run revives the same codes. Without revival they stay zero.
        self.register_buffer("code_counts", torch.zeros(config.codebook_size, dtype=torch.long))
        self.register_buffer("training_steps", torch.zeros((), dtype=torch.long))
        self.post_init()
        self.freeze_stage_one()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.code_counts)
            init.zeros_(self.training_steps)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a checkpoint as [`SeedPreTrainedModel.from_pretrained`] does; what stage I trained is frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_stage_one()
        return loaded

    def freeze_stage_one(self) -> None:
        """Stop the gradient of everything that stage I trained."""
        for module in self._stage_one_modules():
            module.requires_grad_(False)

    def _stage_one_modules(self):
        names = ["vision_model", "vision_layernorm", "qformer", "vision_projection", "text_projection"]
        return [getattr(self.model, name) for name in names if hasattr(self.model, name)]

    def train(self, mode: bool = True) -> "SeedForQuantization":
        super().train(mode)
        for module in self._stage_one_modules():
            module.eval()  # frozen modules use no dropout, because their embeddings are targets
        return self

    @can_return_tuple
    def forward(
        self,
        text_features: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        causal_embeddings: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> SeedTrainingOutput:
        """
        Compute the losses of a batch, given exactly one form of its images.

        Args:
            text_features: `(batch, 77, generation_dim)`, Stable Diffusion's features of one fixed caption per image.
            pixel_values: `(batch, 3, height, width)`.
            vision_features: `(batch, patches, vision_dim)`, cached.
            causal_embeddings: `(batch, num_codes, hidden_size)`, cached.
        """
        model = self.model
        if causal_embeddings is None:
            with torch.no_grad():
                causal_embeddings = model.get_causal_embeddings(pixel_values, vision_features)
        causal_embeddings = causal_embeddings.to(self.dtype)
        vectors = model.encode_causal_embeddings(causal_embeddings)
        revives = self.training and self.revival_interval > 0
        if revives:
            self._revive_codes(vectors.detach())
        quantized = model.quantizer(vectors)
        code_mask = self._sample_prefixes(quantized.codes) if self.training else None

        raised = model.decode_layer(quantized.quantized)
        reconstruction = reconstruction_loss(
            model.reconstruction_decoder(raised), causal_embeddings, self.last_reconstruction_weight
        )
        generated = model.generate_embeddings(quantized.quantized, code_mask)
        generation = generation_loss(generated, text_features)
        loss = (
            self.quantization_weight * quantized.loss
            + self.generation_weight * generation
            + self.reconstruction_weight * reconstruction
        )
        code_counts = count_codes(quantized.codes, self.config.codebook_size)
        if revives:
            self._count_hits(code_counts)
        losses = {
            "quantization": quantized.loss.detach(),
            "generation": generation.detach(),
            "reconstruction": reconstruction.detach(),
        }
        return SeedTrainingOutput(loss=loss, losses=losses, codes=quantized.codes, code_counts=code_counts)

    def _sample_prefixes(self, codes: torch.LongTensor) -> torch.Tensor | None:
        """Return a mask, `(batch, num_codes)`, that shows some examples only their first k codes; None shows all."""
        if not self.prefix_probability:
            return None
        batch, num_codes = codes.shape
        lengths = torch.randint(1, num_codes + 1, (batch, 1), device=codes.device)
        whole = torch.rand(batch, 1, device=codes.device) >= self.prefix_probability
        return whole | (torch.arange(num_codes, device=codes.device) < lengths)

    @torch.no_grad()
    def initialize_from_embeddings(self, causal_embeddings: torch.Tensor) -> None:
        """
        Put the code layers and the codebook on the data before training, as far as `pca_initialization` and
        `kmeans_initialization` are set.

        Args:
            causal_embeddings: `(n, num_codes, hidden_size)`, of training pictures; some 16 vectors per code are enough.
        """
        causal_embeddings = causal_embeddings.to(self.dtype)
        if self.pca_initialization:
            self.model.initialize_code_layers(causal_embeddings)
        if self.kmeans_initialization:
            vectors = self.model.encode_causal_embeddings(causal_embeddings)
            self.model.quantizer.initialize_from_data(vectors, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def _revive_codes(self, vectors: torch.Tensor) -> None:
        """Move dead codes onto the data every `revival_interval` forward passes."""
        step = int(self.training_steps)
        if step == 0 or step % self.revival_interval:
            return
        vectors = gather_with_gradient(vectors).flatten(0, 1)
        # The same generator on every process keeps their codebooks equal.
        generator = torch.Generator().manual_seed(step)
        self.model.quantizer.revive_codes(vectors, self.code_counts == 0, generator)
        self.code_counts.zero_()

    def _count_hits(self, code_counts: torch.LongTensor) -> None:
        """
        Add the hits of one forward pass, of all processes, to the buffers.

        They are summed at every pass, not at a revival only: DDP copies the main process's buffers to the others, and
        a checkpoint holds the main process's, so that hits which only their own process knows would be lost.
        """
        if dist.is_initialized():
            code_counts = code_counts.clone()
            dist.all_reduce(code_counts)
        self.code_counts += code_counts
        self.training_steps += 1


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate `(batch, ...)` over processes; the gradient flows back to each (a plain gather would drop it)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    if not tensor.requires_grad:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor.contiguous()))


__all__ = [
    "SeedForContrastiveLearning",
    "SeedForImageTextPretraining",
    "SeedForQuantization",
    "SeedTrainingOutput",
]
