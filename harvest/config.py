"""The settings of the harvest stage, with every default, and the sentence that says why a value cannot work."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.settings import PathText, Settings

Site = Literal["mlp_in", "ln2_normalized", "mlp_out", "resid_pre", "resid_mid", "resid_post", "attn_out"]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]


class HarvestSettings(Settings):
    """What text goes through the model, cut how, and which tensors are kept."""

    dataset: PathText = "stdlib"
    """``stdlib``, a file, folder or glob (txt, jsonl, each also .gz; parquet; a folder of ``save_to_disk``), or a Hub
    name. Of a folder the files of ``dataset_split`` are read."""
    dataset_revision: str | None = None
    """The Hub commit, branch or tag of the dataset; the commit that it meant is recorded."""
    dataset_config: str | None = None
    """The Hub dataset's configuration, where it has several."""
    dataset_split: str = "train"
    """The dataset's own split to read; rows are held out by document, whatever it is called."""
    text_column: str = "text"
    """The column or jsonl key that holds a document's text."""
    tokens_column: str | None = None
    """A column of ready token ids, read instead of the text."""
    messages_column: str | None = None
    """The column of chat messages (role and content), put through the tokenizer's chat template."""
    txt_document: Literal["file", "paragraph", "line"] = "file"
    """What counts as one document in a .txt file."""
    txt_separator: str | None = None
    """What stands between documents in a .txt file, instead of ``txt_document``."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do at a row that cannot be used: stop with its file and number, or leave it out and count it."""
    special_tokens_in_text: Literal["text", "control"] = "text"
    """What ``<bos>`` or ``<|endoftext|>`` written out in a text is: plain text, or the control token."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether contexts begin with BOS: auto does what the tokenizer does with a text, and where its BOS is its
    end-of-text (GPT-2) begins with that."""
    context: Count = 256
    """Tokens the model sees at once, BOS included."""
    packing: Literal["packed", "document"] = "packed"
    """Documents one after another in full contexts, or one document (or a part of it) a context."""
    attention: Literal["context", "document"] = "context"
    """In packed contexts: attend to the whole context, or only within the document, positions starting anew."""
    train_tokens: Count = 1_000_000
    """Rows to keep for training, special tokens included."""
    held_out_tokens: Count = 50_000
    """Rows to keep for evaluation, from documents of their own."""
    held_out_document_tokens: Count | None = None
    """The most rows of one held-out document, so that the held-out rows come from more documents; None takes all."""
    repeat: bool = False
    """Read the text again from its beginning when it is too short, instead of stopping with an error."""
    source: Site = "mlp_in"
    """The tensor that the transcoder reads."""
    target: Site = "mlp_out"
    """The tensor that the transcoder predicts."""
    probe_words: Count = 500
    """The most words of one letter in the first-letter probe."""
    probe_examples: Count = 10
    """Solved lines before the word in a prompt of the first-letter probe."""
    batch_contexts: Count | None = None
    """Contexts that go through the model at once; None finds a number that fits."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The model's own arithmetic: auto is bfloat16 on a GPU and float32 on a CPU."""
    revision: str | None = None
    """The Hub commit, branch or tag of the model; the commit that it meant is recorded."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: seconds more before the first token, and then, on a CPU, 1.3 to
    1.6 times as fast a forward pass through the embedded models. Not measured on a GPU."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The tensors that a harvest keeps: source and target, or the one tensor that is both."""
        return (self.source,) if self.source == self.target else (self.source, self.target)

    @model_validator(mode="after")
    def _agree(self) -> "HarvestSettings":
        if self.context < 2:
            raise ValueError("context is 1: BOS alone; a context needs at least 2 tokens")
        if self.attention == "document" and self.packing == "document":
            raise ValueError("attention: document says how packed contexts attend; with packing: document leave it out")
        if self.dataset == "stdlib" and (self.tokens_column or self.messages_column):
            raise ValueError("tokens_column or messages_column is given, but the standard library is text")
        if self.tokens_column and self.messages_column:
            raise ValueError("tokens_column and messages_column are given: a row is one or the other")
        if self.txt_separator == "":
            raise ValueError("txt_separator is empty; leave it out to use txt_document")
        if self.txt_separator and self.txt_document != "file":
            raise ValueError("txt_separator and txt_document are given: a file is divided in one way")
        return self
