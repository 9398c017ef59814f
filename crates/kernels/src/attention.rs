//! Causal attention over packed sequences, some of which share a prefix.

use crate::{Branch, Error, HeadLayout, Result, Scoring, Span, op, simd::Level};
use candle_core::Tensor;
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Causal softmax attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1) of every span of
/// a packed batch: `qkv (n, (H + 2 Hkv) D)` to `(n, H D)`, differentiable.
///
/// A row sees all of its span's prefix, then its span up to itself; with a `window` w only the last
/// w of those, itself included (Mistral, arXiv 2310.06825, section 2). Query head h reads key head
/// `h / (H / Hkv)` (Ainslie et al. 2023, arXiv 2305.13245). On the CPU in `f32` a row's result is
/// the same to the last bit whatever shares its batch, whether its prefix is shared or not, and in
/// [`cached_attention`](crate::cached_attention).
///
/// Spans lie one after the other and cover all n rows; a prefix is a whole earlier span that has
/// none itself. Anything else is refused.
pub fn attention(
    qkv: &Tensor,
    spans: &Arc<[Span]>,
    layout: HeadLayout,
    scoring: impl Into<Scoring>,
    window: Option<usize>,
) -> Result<Tensor> {
    Branch::of(qkv).attention(spans, layout, scoring, window)?.alone()
}

impl Branch {
    /// [`attention()`].
    pub fn attention(
        self,
        spans: &Arc<[Span]>,
        layout: HeadLayout,
        scoring: impl Into<Scoring>,
        window: Option<usize>,
    ) -> Result<Branch> {
        let scoring = scoring.into();
        if self.is_fused() {
            return fused::attention_at(Level::best(), self, spans, layout, scoring, window);
        }
        self.map(|qkv| attention_composed(qkv, spans, layout, scoring, window))
    }
}

/// Refuses a projection of these rows and columns, or a window, that does not fit; returns the rows.
pub(crate) fn check(
    op: &'static str,
    (rows, columns): (usize, usize),
    layout: HeadLayout,
    window: Option<usize>,
) -> Result<usize> {
    check_layout(op, layout)?;
    if window == Some(0) {
        return Err(Error::Value { op, argument: "window", expected: "at least 1", got: 0.0 });
    }
    op::check_shape(op, "qkv", &[rows, columns], &[rows, layout.qkv_dim()])?;
    Ok(rows)
}

/// Refuses a soft cap that is not above 0.
pub(crate) fn check_softcap(op: &'static str, scoring: Scoring) -> Result<()> {
    scoring.softcap.map_or(Ok(()), |cap| op::check_positive(op, "softcap", cap))
}

/// Refuses a layout whose query heads cannot be divided among its key heads.
pub(crate) fn check_layout(op: &'static str, layout: HeadLayout) -> Result<()> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    if head_dim > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0 {
        return Ok(());
    }
    let expected = "(H, Hkv, D), none of them 0 and H a multiple of Hkv".to_owned();
    Err(Error::Shape { op, argument: "layout", expected, got: vec![heads, kv_heads, head_dim] })
}

/// A span without a prefix and the spans that continue it. Groups have no row in common, so that
/// one task can add up the gradients of a shared prefix in a fixed order.
#[derive(Debug)]
struct Group {
    trunk: Range<usize>,
    branches: Vec<Range<usize>>,
}

impl Group {
    /// Keys that the longest member sees.
    fn keys(&self) -> usize {
        self.members().map(|(before, rows)| before + rows.len()).max().unwrap_or(0)
    }

    /// Every span of the group with the number of keys before its own, the trunk first.
    fn members(&self) -> impl Iterator<Item = (usize, &Range<usize>)> {
        std::iter::once((0, &self.trunk)).chain(self.branches.iter().map(|branch| (self.trunk.len(), branch)))
    }

    /// Pairs of rows and the keys they see: the work, up to a factor.
    fn pairs(&self) -> usize {
        self.members().map(|(before, rows)| rows.len() * (2 * before + rows.len() + 1) / 2).sum()
    }
}

fn groups(spans: &[Span], rows: usize) -> Result<Vec<Group>> {
    let refuse = |expected: &str, range: &Range<usize>| Error::Shape {
        op: "attention",
        argument: "spans",
        expected: expected.to_owned(),
        got: vec![range.start, range.end],
    };
    let mut groups: Vec<Group> = Vec::new();
    let mut trunks = BTreeMap::new();
    let mut end = 0;
    for span in spans {
        if span.rows.start != end || span.rows.end < end {
            return Err(refuse("one after the other from row 0 on", &span.rows));
        }
        end = span.rows.end;
        match &span.prefix {
            None => {
                trunks.insert(span.rows.start, groups.len());
                groups.push(Group { trunk: span.rows.clone(), branches: Vec::new() });
            }
            Some(prefix) => {
                let group = trunks.get(&prefix.start).map(|&group| &mut groups[group]);
                match group.filter(|group| group.trunk == *prefix && !prefix.is_empty()) {
                    Some(group) => group.branches.push(span.rows.clone()),
                    None => return Err(refuse("with prefixes that are earlier spans without one", prefix)),
                }
            }
        }
    }
    if end != rows {
        return Err(refuse(&format!("to cover all {rows} rows"), &(0..end)));
    }
    Ok(groups)
}

mod composed;
mod fused;
#[cfg(test)]
mod tests;

pub use composed::attention_composed;
#[cfg(test)]
pub(crate) use composed::compose_in_blocks;
pub(crate) use composed::{Sequence, Split, compose};
pub(crate) use fused::{Columns, for_each};
