//! How the flat run of tokens is cut into sequences and the channels into heads.

use std::ops::Range;

/// One sequence of a packed batch. Its rows attend causally among themselves and, when there is a
/// prefix, to all rows of that prefix first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The sequence's own rows in the flat batch.
    pub rows: Range<usize>,
    /// Rows of an earlier span without a prefix of its own (the prompt), never empty.
    pub prefix: Option<Range<usize>>,
}

/// How a query and a key become a score: `scale q . k`, with a soft cap c `c tanh(scale q . k / c)`, which keeps
/// it between -c and c (Gemma 2, arXiv 2408.00118, section 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Factor of the product.
    pub scale: f32,
    /// What no score exceeds; above 0.
    pub softcap: Option<f32>,
}

impl From<f32> for Scoring {
    /// Without a cap.
    fn from(scale: f32) -> Scoring {
        Scoring { scale, softcap: None }
    }
}

/// How the channels of a fused projection `(n, (H + 2 Hkv) D)` are cut: all query heads, then all
/// key heads, then all value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads Hkv; H is a multiple of it (grouped-query attention, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Channels per head D.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Channels of the fused projection, `(H + 2 Hkv) D`.
    pub fn qkv_dim(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Channels of the attention output, `H D`.
    pub fn out_dim(&self) -> usize {
        self.heads * self.head_dim
    }
}
