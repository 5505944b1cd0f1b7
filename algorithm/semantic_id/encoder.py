"""特征网络与对外的编码器。

形状字母：B 批大小，D 特征维度，H 隐向量宽度，M 网络隐层宽度（`hidden_dim`），L 层数，K_l 码本大小。

`SemanticIDEncoder` 是用户面对的门面：实现 `SemanticIDEncoderInterface`，能存能取，能推到 Hugging Face Hub。
它把特征网络注入 `rq_vae`，所以需求里的训练循环 `encoder.rq_vae(batch)["total_loss"].backward()` 真的有参数可学。
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Type

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import nn

from algorithm.interfaces import SemanticIDEncoderInterface

from .checks import check_level
from .config import SemanticIDConfig, check_beam_size
from .errors import InputError, InputTypeError
from .exact_linear import FeatureNetwork
from .files import checkpoint
from .files.durable import one_writer
from .files.model_card import model_card
from .files.sealed import canonical
from .rq_vae import ResidualVectorQuantizer

__all__ = ["FeatureDecoder", "FeatureEncoder", "SemanticIDEncoder", "save_model"]


class FeatureEncoder(FeatureNetwork):
    """特征编码网络：(B, D) 特征 → (B, H) 隐向量；`latent_dim` 为 None 时 H = D。"""

    def __init__(self, dim: int, hidden_dim: int, latent_dim: int | None = None):
        super().__init__(dim, dim if latent_dim is None else latent_dim, hidden_dim)


class FeatureDecoder(FeatureNetwork):
    """特征解码网络：(B, H) 码字之和 → (B, D) 重建特征；`latent_dim` 为 None 时 H = D。"""

    def __init__(self, dim: int, hidden_dim: int, latent_dim: int | None = None):
        super().__init__(dim if latent_dim is None else latent_dim, dim, hidden_dim)


class SemanticIDEncoder(
    nn.Module,
    SemanticIDEncoderInterface,
    ModelHubMixin,
    library_name="semid",
    tags=["semantic-id", "rq-vae", "generative-recommendation"],
):
    """语义 ID 编码器：(B, D) 特征 ↔ L 层编号。

    Args:
        config: 结构参数，None 为默认（256 维，1024/4096/16384）；在此校验并复制。

    Attributes:
        rq_vae: 残差量化器，已注入特征网络；束搜索的内存上限在 `rq_vae.beam_table_bytes`。
        feature_mean: (D,) 训练行的均值，`relative_mse` 以它为中心；未训练时为 0。
        training_figures: 训练时测得的数字，随模型保存，写进模型卡。

    Raises:
        TypeError, ValueError: 配置不合法。

    References:
        Rajput et al., 2023, TIGER, arXiv:2305.05065。
    """

    feature_mean: torch.Tensor

    def __init__(self, config: SemanticIDConfig | None = None):
        super().__init__()
        if config is not None and not isinstance(config, SemanticIDConfig):
            raise InputTypeError(f"config must be a SemanticIDConfig, got {type(config).__name__}")
        self.config = (config if config is not None else SemanticIDConfig()).resolved()
        shape = (self.config.embedding_dim, self.config.hidden_dim, self.config.latent_dim)
        self.rq_vae = ResidualVectorQuantizer(self.config, FeatureEncoder(*shape), FeatureDecoder(*shape))
        self.register_buffer("feature_mean", torch.zeros(self.config.embedding_dim))  # (D,)
        self.training_figures: Dict[str, Any] = {}

    @property
    def embedding_dim(self) -> int:
        """特征维度 D。"""
        return self.config.embedding_dim

    @property
    def codebook_sizes(self) -> Tuple[int, ...]:
        """各层码本大小 (K_1, …, K_L)。"""
        return self.config.codebook_sizes

    def encode(self, features: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """编码物品特征为语义 ID。

        只读：训练模式与评估模式结果相同。一行的 ID 只由这一行与模型决定，与批大小、顺序、线程数无关。

        Args:
            features: (B, D) 浮点特征，与模型在同一设备；B 任意大，额外内存有界。

        Returns:
            L 个 (B,) int64 张量；默认配置下即 (L1_ids, L2_ids, L3_ids)。

        Raises:
            TypeError: 不是实浮点张量。
            ValueError: 形状不对、为空，或含 NaN/Inf（指出第一个坏行）。
        """
        return self.rq_vae.encode(features)

    def encode_candidates(
        self, features: torch.Tensor, num_candidates: int, prefixes: torch.Tensor | None = None
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """每个物品的几条候选语义 ID 与误差，例如在 ID 冲突时另选一条。

        束宽取 `num_candidates` 与 `config.beam_size` 中较大的一个，所以 `num_candidates` 不大于 `beam_size` 时，
        第一条就是 `encode` 的结果；`num_candidates` 不小于 `beam_size` 时，候选里一定有贪心路径（逐层取最近码字）。

        Args:
            features: (B, D) 浮点特征，与模型在同一设备。
            num_candidates: 要几条，M，[1, 1024]；结果占 B · M · 8(L + 1) 字节，大批请自行分块。
            prefixes: (B, L − 1) 整数；给出时候选只在这个前缀之内，即只换最后一层，这时 M 可以到 K_L（1024 以上很慢）。

        Returns:
            codes: (B, M, L) int64，每行互不相同，按（误差，编号字典序）递增；码本太小凑不满 M 条时，余下的填 −1。
            errors: (B, M) float64，隐空间里的误差 ‖z − Σ q‖²（特征单位的平方，没有过解码网络）；余下的填 inf。

        Raises:
            TypeError: features 不是实浮点张量，或 num_candidates 不是整数。
            ValueError: 形状不对、为空、含 NaN/Inf，或 num_candidates 越界。
        """
        if prefixes is not None:
            return self.rq_vae.prefix_candidates(features, prefixes, num_candidates)
        return self.rq_vae.encode_candidates(features, num_candidates)

    def path_errors(self, features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """每走一层之后，隐空间里还剩多少误差。

        Args:
            features: (B, D) 浮点特征，与模型在同一设备。
            codes: (B, L) 整数编码，不必是 `encode` 的结果。

        Returns:
            (B, L) float64，第 l 列是 ‖z − Σ_{j≤l} q_j‖²，单位为特征的平方；最后一列与 `encode_candidates` 的误差同义。
        """
        return self.rq_vae.path_errors(features, codes)

    def decode(
        self,
        l1_ids: torch.Tensor,
        l2_ids: torch.Tensor | None = None,
        l3_ids: torch.Tensor | None = None,
        *more_ids: torch.Tensor,
    ) -> torch.Tensor:
        """从语义 ID 重建特征向量。

        Args:
            l1_ids: (B,) 整数，[0, K_1)。
            l2_ids: (B,) 整数，[0, K_2)；只有一层的模型不传。
            l3_ids: (B,) 整数，[0, K_3)；只有两层的模型不传。
            *more_ids: 三层以上的模型继续传 L4、L5……

        Returns:
            (B, D) float32。

        Raises:
            TypeError: 不是整数张量。
            ValueError: 层数、形状不对，或编号越界（指出第一个）。
        """
        levels: List[Any] = [l1_ids, l2_ids, l3_ids, *more_ids]
        while levels and levels[-1] is None:  # 末尾没有传的层；中间的 None 是漏传，交给门口去报
            levels.pop()
        return self.rq_vae.decode(*levels)

    def get_codebook_embeddings(self, level: int) -> torch.Tensor:
        """取某一层码本的副本，例如用来初始化 Transformer 的词表。

        Args:
            level: 1、2、3 对应 L1、L2、L3。

        Returns:
            (K_level, H) float32，与模型不共享内存。

        Raises:
            TypeError: level 不是整数。
            ValueError: level 不在 1…L。
        """
        quantizer = self.rq_vae.quantizers[check_level(level, self.config.num_codebooks)]
        return quantizer.embedding.weight.detach().clone()

    def encode_codes(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D) 特征 → (B, L) int64 编码；错误同 `encode`。"""
        return torch.stack(self.encode(features), dim=1)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, L) 整数编码 → (B, D) float32；错误同 `decode`。"""
        if not isinstance(codes, torch.Tensor) or codes.ndim != 2:
            raise InputError(f"codes must be a tensor of shape (B, {self.config.num_codebooks})")
        return self.rq_vae.decode(*codes.unbind(1))

    def refresh_(self) -> None:
        """让搜索重新整理码本：直接改了权重的一部分之后叫它。

        torch 的运算、优化器、`load_state_dict`、`.data = …` 与整个数组的改写，编码时自己看得出来。只有经 `.data` 或
        NumPy 改了**一部分**权重看不出来（它们不留痕迹，而逐元素核对比编码一行还贵）：不叫它的话，要到一次编码
        4096 行以上才会被发现。
        """
        self.rq_vae.refresh_()

    def set_beam_size_(self, beam_size: int | None) -> None:
        """换一个束宽。它决定 ID：已经发布过 ID 的模型不要再改。

        Args:
            beam_size: [1, 1024]；1 是逐层取最近码字；None 是不定，按 1 编码。

        Raises:
            TypeError: 不是整数。
            ValueError: 越界。
        """
        beam_size = None if beam_size is None else check_beam_size(beam_size)
        self.config.beam_size = self.rq_vae.config.beam_size = beam_size

    @torch.no_grad()
    def relabel_(self, labels: Sequence[torch.Tensor]) -> None:
        """给码字重新编号：第 l 层的第 k 个码字改叫 `labels[l][k]`；向量与误差不变，指纹改变。

        Args:
            labels: L 个 (K_l,) int64 排列。

        Raises:
            ValueError: 层数不符，或不是排列。
        """
        if len(labels) != len(self.codebook_sizes):
            raise InputError(f"got labels of {len(labels)} levels, but the model has {len(self.codebook_sizes)}")
        for level, (label, size) in enumerate(zip(labels, self.codebook_sizes, strict=True)):
            if label.shape != (size,) or not torch.equal(label.sort().values.cpu(), torch.arange(size)):
                raise InputError(f"labels of L{level + 1} are no permutation of 0…{size - 1}")
        for quantizer, label in zip(self.rq_vae.quantizers, labels, strict=True):
            for tensor in quantizer.state_dict().values():
                if tensor.ndim:  # 标量是训练时钟，与编号无关
                    tensor[label] = tensor.clone()

    def fingerprint(self) -> str:
        """决定 ID 的一切（配置与权重）的 SHA-256，64 位十六进制。"""
        return checkpoint.fingerprint_of(self.config.to_dict(), self.state_dict())

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Any = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """保存为文件夹：config.json、model.safetensors、README.md（模型卡）。

        Args:
            save_directory: 目标文件夹；已有的模型被原子地替换，用户自己的 README.md 不动。
            config: 只为与 huggingface_hub 的签名一致，不用：配置取自模型。
            repo_id: 上传到哪个仓库；None 取文件夹名。
            push_to_hub: 保存之后是否上传到 Hub。
            model_card_kwargs: 同 `config`，不用：模型卡由测得的数字生成。
            **push_to_hub_kwargs: 上传时交给 `push_to_hub` 的参数（`private`、`token`、`branch`……）。

        Returns:
            上传时为提交的地址，否则为 None。

        Raises:
            TypeError: 不上传却给了上传的参数，多半是拼错的名字。
            OSError: 写不进去、另一个进程正在写它，或里面有别的工具的 config.json；不会留下看似完整的模型。
        """
        if push_to_hub_kwargs and not push_to_hub:
            name = next(iter(push_to_hub_kwargs))
            raise InputTypeError(
                f"save_pretrained got {name!r}, which is only for push_to_hub=True; drop it or upload too"
            )
        folder = Path(save_directory)
        with one_writer(folder):
            save_model(self, folder)
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)
        return None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> SemanticIDEncoder:
        """从文件夹或 Hub 加载，核对 SHA-256 与指纹；得到的模型在 CPU 上，处于评估模式。

        Args:
            pretrained_model_name_or_path: `save_pretrained` 写出的文件夹，或 Hub 上的仓库名。
            force_download: 已缓存也重新下载；这个与以下几个都只用于 Hub。
            token: 访问私有仓库的令牌。
            cache_dir: 缓存目录。
            local_files_only: 只用缓存，不联网。
            revision: 分支、标签或提交。

        Returns:
            编码同样的特征会得到逐位相同 ID 的编码器；指纹就是写下的那个，不论写它的是哪个版本。

        Raises:
            FileNotFoundError: 没有这个文件夹，或里面没有完成的模型。
            ModelFileError: 文件截断、被改动、损坏，或权重与配置对不上。
        """
        folder = Path(pretrained_model_name_or_path)
        name = str(pretrained_model_name_or_path)
        looks_like_repo = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not folder.exists()
        if looks_like_repo and not folder.parent.is_dir():
            fetched = snapshot_download(
                name, allow_patterns=[checkpoint.CONFIG_NAME, checkpoint.WEIGHTS_NAME], force_download=force_download,
                token=token, cache_dir=cache_dir, local_files_only=local_files_only, revision=revision,
            )  # fmt: skip
            folder = Path(fetched)
        return _built(cls, folder, *checkpoint.load_folder(folder))


def save_model(encoder: SemanticIDEncoder, folder: Path) -> None:
    """写出模型文件夹；调用者已拿到它的锁（`save_pretrained` 或训练器）。"""
    card = model_card(encoder.config, encoder.training_figures, encoder.fingerprint())
    config, tensors = encoder.config.to_dict(), encoder.state_dict()
    checkpoint.save_folder(folder, config, tensors, encoder.training_figures, card)


def _built(
    cls: Type[SemanticIDEncoder], folder: Path, values: Dict[str, Any], tensors: Dict[str, torch.Tensor], figures: Any
) -> SemanticIDEncoder:
    """读出的内容 → 模型；先比形状再建模型，所以配置写得再大，也不会占用比权重文件更多的内存。"""
    where = repr(str(folder))
    try:
        config = SemanticIDConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise checkpoint.ModelFileError(f"config of {where} is not valid: {error}") from None
    if canonical(config.to_dict()) != canonical(values):
        raise checkpoint.ModelFileError(f"config of {where} is not written as semid writes it; save the model again")
    checkpoint.check_kinds(where, tensors, dict(_deciding_shapes(config)))
    # 不用 meta 设备上的空壳去比：在那里初始化要导入 torch._dynamo，每个命令白等一秒多
    model = cls(config)
    kinds = {name: checkpoint.kind_of(t) for name, t in model.state_dict().items()}
    checkpoint.check_kinds(where, tensors, kinds, exactly=True)
    model.load_state_dict(tensors)
    model.training_figures = figures
    return model.eval()


def _deciding_shapes(config: SemanticIDConfig) -> Iterator[Tuple[str, str]]:
    """配置里的每一个大小都定在某个张量上：它们都对得上，模型就不会比权重文件大。"""
    yield "rq_vae.encoder.weight_in", f"float32 {(config.embedding_dim, config.hidden_dim)}"
    for level, size in enumerate(config.codebook_sizes):
        yield f"rq_vae.quantizers.{level}.embedding.weight", f"float32 {(size, config.width)}"
