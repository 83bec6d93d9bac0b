"""The settings of the harvest stage with their defaults, and the messages for values that cannot work."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.settings import PathText, Settings

Site = Literal["mlp_in", "ln2_normalized", "mlp_out", "resid_pre", "resid_mid", "resid_post", "attn_out"]


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_integral), Field(gt=0)]


class HarvestSettings(Settings):
    """Which text is run through the model, how it is cut into contexts, and which tensors are stored."""

    dataset: PathText = "stdlib"
    """``stdlib``, a file, folder or glob (txt, jsonl, each also .gz; parquet; a folder of ``save_to_disk``), or a Hub
    name. In a folder the files of ``dataset_split`` are read."""
    dataset_revision: str | None = None
    """The Hub commit, branch or tag of the dataset; its commit is recorded."""
    dataset_config: str | None = None
    """The Hub dataset's configuration, if it has several."""
    dataset_split: str = "train"
    """The dataset's split to read. Held-out documents are chosen from it, whatever its name is."""
    text_column: str = "text"
    """The column or jsonl key with a document's text."""
    tokens_column: str | None = None
    """A column of ready token ids, read instead of the text."""
    messages_column: str | None = None
    """The column of chat messages (role and content), put through the tokenizer's chat template."""
    txt_document: Literal["file", "paragraph", "line"] = "file"
    """What counts as one document in a .txt file."""
    txt_separator: str | None = None
    """The text between two documents in a .txt file, instead of ``txt_document``."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do with a row that cannot be used: stop and name its file and number, or leave it out and count it."""
    special_tokens_in_text: Literal["text", "control"] = "text"
    """What ``<bos>`` or ``<|endoftext|>`` in a text means: plain text, or the control token."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether contexts begin with BOS. auto does what the tokenizer does with a text; if its BOS is its end-of-text
    token (GPT-2), contexts begin with it."""
    context: Count = 256
    """Tokens of a context, BOS included."""
    packing: Literal["packed", "document"] = "packed"
    """Full contexts with one document after another, or one document (or a piece of it) in each context."""
    attention: Literal["context", "document"] = "context"
    """In packed contexts: attend to all of the context, or only to the same document, whose positions begin at 0."""
    train_tokens: Count = 1_000_000
    """Rows to store for training, special tokens included."""
    held_out_tokens: Count = 50_000
    """Rows to store for evaluation, from documents that are not trained on."""
    held_out_document_tokens: Count | None = None
    """The most rows of one held-out document, so that the rows come from more documents; None takes all of its rows."""
    repeat: bool = False
    """Read the text again from its beginning when it is too short, instead of stopping with an error."""
    source: Site = "mlp_in"
    """The tensor that the transcoder reads."""
    target: Site = "mlp_out"
    """The tensor that the transcoder predicts."""
    probe_words: Count = 500
    """The most words with the same letter in the first-letter probe."""
    probe_examples: Count = 10
    """Solved lines before the word in a prompt of the first-letter probe."""
    batch_contexts: Count | None = None
    """Contexts in one forward pass; None finds a number that fits."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The dtype in which the model computes: auto is bfloat16 on a GPU and float32 on a CPU."""
    revision: str | None = None
    """The Hub commit, branch or tag of the model; its commit is recorded."""
    compile: bool = False
    """Compile the model's blocks with torch.compile. It takes some seconds before the first token; on a CPU the forward
    pass of the embedded models is then 1.3 to 1.6 times as fast, on an H200 that of blocks of Gemma-2-2B's shape 1.4
    times."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The tensors that a harvest stores: source and target, or the one tensor that is both."""
        return (self.source,) if self.source == self.target else (self.source, self.target)

    @model_validator(mode="after")
    def _agree(self) -> "HarvestSettings":
        if self.context < 2:
            raise ValueError("context is 1, which is only BOS; a context needs at least 2 tokens")
        if self.attention == "document" and self.packing == "document":
            raise ValueError("attention: document is only for packed contexts; with packing: document leave it out")
        if self.dataset == "stdlib" and (self.tokens_column or self.messages_column):
            raise ValueError("tokens_column or messages_column is given, but the dataset stdlib is text")
        if self.tokens_column and self.messages_column:
            raise ValueError("tokens_column and messages_column are both given; give only one of them")
        if self.txt_separator == "":
            raise ValueError("txt_separator is empty; leave it out to use txt_document")
        if self.txt_separator and self.txt_document != "file":
            raise ValueError("txt_separator and txt_document are both given; give only one of them")
        return self
