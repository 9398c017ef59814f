//! A family is a table: how its `config.json` maps to [`Config`], and which piece of which of our
//! parameters each of its tensors is. A new family is a file here, a line of the lists below, and a variant of [`Family`].

mod fields;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;

use std::ops::Range;

use serde_json::{Map, Value};

pub(crate) use self::{
    fields::Fields,
    gemma::query_scalar,
    llama::{every, qkv_rows, unrotated, yarn_magnitude},
};
use crate::{Config, Family, HeadKind};

/// One tensor on disk and where its elements stand in one of our parameters. The same list reads
/// and writes a checkpoint, so that the round trip holds by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Name on disk.
    pub(crate) disk: String,
    /// Our name.
    pub(crate) canonical: String,
    /// Rows of our parameter (elements, where it is a vector) that the tensor on disk holds.
    pub(crate) rows: Range<usize>,
    /// How the rows stand on disk.
    pub(crate) order: Order,
}

/// How a tensor on disk is laid out, compared with our `(out, in)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As ours.
    Same,
    /// `(in, out)`, as GPT-2's `Conv1D` keeps its matrices.
    Transposed,
    /// Rows of every head with the two halves of a rotated pair side by side: row `2 j + half` on
    /// disk is row `half * head_dim / 2 + j` here. Llama GGUF and llama2.c files.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
    /// As ours, each element with 1 added: the gains of Gemma in GGUF files.
    OnePlus,
    /// Query, key and value of one head next to each other, head after head: row
    /// `(3 h + part) D + d` on disk is row `(part H + h) D + d` here. GPT-NeoX.
    ByHead {
        /// Rows per head of each part, `D`.
        head_dim: usize,
    },
}

impl Piece {
    /// The piece that holds all of `canonical`, whose first dimension is `rows`.
    pub(crate) fn whole(disk: impl Into<String>, canonical: impl Into<String>, rows: usize) -> Piece {
        Piece { disk: disk.into(), canonical: canonical.into(), rows: 0..rows, order: Order::Same }
    }

    /// Shape on disk, given the shape of our parameter.
    pub(crate) fn disk_shape(&self, canonical: &[usize]) -> Vec<usize> {
        let mut shape = canonical.to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = self.rows.len();
        }
        if self.order == Order::Transposed {
            shape.reverse();
        }
        shape
    }

    /// Copies the piece's elements, in disk order, into our parameter of `columns` columns.
    pub(crate) fn place(&self, disk: &[f32], canonical: &mut [f32], columns: usize) {
        for row in 0..self.rows.len() {
            let target = &mut canonical[self.span(row, columns)];
            match self.order {
                Order::Transposed => {
                    let stored = disk[row..].iter().step_by(self.rows.len());
                    target.iter_mut().zip(stored).for_each(|(to, from)| *to = *from);
                }
                Order::OnePlus => {
                    let stored = &disk[row * columns..];
                    target.iter_mut().zip(stored).for_each(|(to, from)| *to = *from - 1.0);
                }
                _ => target.copy_from_slice(&disk[row * columns..(row + 1) * columns]),
            }
        }
    }

    /// The piece's elements in disk order, out of our parameter of `columns` columns: the inverse
    /// of [`Piece::place`].
    pub(crate) fn take(&self, canonical: &[f32], columns: usize) -> Vec<f32> {
        let mut disk = vec![0.0; self.rows.len() * columns];
        for row in 0..self.rows.len() {
            let source = &canonical[self.span(row, columns)];
            match self.order {
                Order::Transposed => {
                    let stored = disk[row..].iter_mut().step_by(self.rows.len());
                    stored.zip(source).for_each(|(to, from)| *to = *from);
                }
                Order::OnePlus => {
                    let stored = disk[row * columns..].iter_mut();
                    stored.zip(source).for_each(|(to, from)| *to = *from + 1.0);
                }
                _ => disk[row * columns..(row + 1) * columns].copy_from_slice(source),
            }
        }
        disk
    }

    /// Where row `row` of the piece stands in our parameter.
    fn span(&self, row: usize, columns: usize) -> Range<usize> {
        let row = match self.order {
            Order::Same | Order::Transposed | Order::OnePlus => row,
            Order::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
            Order::ByHead { head_dim } => {
                let (block, within) = (row / head_dim, row % head_dim);
                let heads = self.rows.len() / (3 * head_dim);
                (block % 3 * heads + block / 3) * head_dim + within
            }
        };
        let start = (self.rows.start + row) * columns;
        start..start + columns
    }
}

/// What transformers calls a family and how its checkpoints are laid out.
pub(crate) struct Table {
    /// `model_type` in `config.json`.
    pub(crate) model_type: &'static str,
    /// First part of the class names, `Llama` in `LlamaForCausalLM`.
    class: &'static str,
    /// The same of classes with a scalar head, where it is another.
    classifier: Option<&'static str>,
    /// Last part of the language model's class name.
    language: &'static str,
    /// Name of a value model's head on disk.
    value_head: &'static str,
    /// Name of an untied language head's matrix on disk.
    pub(crate) unembedding: &'static str,
    /// Prefix of the trunk's tensor names; checkpoints of bare trunks leave it out.
    pub(crate) prefix: &'static str,
    /// Endings of tensors that hold no parameter (masks, rotary tables in older files).
    pub(crate) harmless: &'static [&'static str],
    read: fn(&Fields) -> Config,
    write: fn(&Config) -> Map<String, Value>,
    /// Pieces of the trunk; their disk names lack the prefix.
    trunk: fn(&Config) -> Vec<Piece>,
}

/// Module name of a value head beside a language head, as TRL writes it. Transformers has no such
/// class: it loads the language model and mentions the two tensors.
pub(crate) const VALUE_BESIDE: &str = "v_head.summary";

const TABLES: [&Table; 9] = [
    &gpt2::GPT2,
    &gpt_neox::GPT_NEOX,
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::QWEN2,
    &llama::QWEN3,
    &llama::SMOLLM3,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
];

/// The table of a family.
pub(crate) fn table(family: Family) -> &'static Table {
    match family {
        Family::Gpt2 => &gpt2::GPT2,
        Family::GptNeox => &gpt_neox::GPT_NEOX,
        Family::Llama => &llama::LLAMA,
        Family::Mistral => &llama::MISTRAL,
        Family::Qwen2 => &llama::QWEN2,
        Family::Qwen3 => &llama::QWEN3,
        Family::SmolLm3 => &llama::SMOLLM3,
        Family::Gemma2 => &gemma::GEMMA2,
        Family::Gemma3 => &gemma::GEMMA3,
    }
}

/// The table whose `model_type` this is.
pub(crate) fn by_model_type(model_type: &str) -> Option<&'static Table> {
    TABLES.into_iter().find(|table| table.model_type == model_type)
}

/// Every `model_type` that can be read, for messages.
pub(crate) fn model_types() -> String {
    TABLES.map(|table| table.model_type).join(", ")
}

impl Table {
    /// The description that `config.json` gives. Problems are collected in `fields`.
    pub(crate) fn config(&self, fields: &Fields) -> Config {
        (self.read)(fields)
    }

    /// The family's part of `config.json`.
    pub(crate) fn fields(&self, config: &Config) -> Map<String, Value> {
        (self.write)(config)
    }

    /// Transformers' class for this head.
    pub(crate) fn architecture(&self, head: HeadKind) -> String {
        let classifier = self.classifier.unwrap_or(self.class);
        match head {
            HeadKind::LanguageModel | HeadKind::LanguageModelWithValue => format!("{}{}", self.class, self.language),
            HeadKind::Score => format!("{classifier}ForSequenceClassification"),
            HeadKind::Value => format!("{classifier}ForTokenClassification"),
        }
    }

    /// All tensors of a checkpoint with this head, in transformers' names. A reward model's bias
    /// is not among them: `...ForSequenceClassification` has none.
    pub(crate) fn pieces(&self, config: &Config, head: HeadKind) -> Vec<Piece> {
        let mut pieces = (self.trunk)(config);
        for piece in &mut pieces {
            piece.disk.insert_str(0, self.prefix);
        }
        if head.is_language() && !config.tied {
            pieces.push(Piece::whole(self.unembedding, "lm_head.weight", config.vocab));
        }
        match head {
            HeadKind::LanguageModel => {}
            HeadKind::Score => pieces.push(Piece::whole("score.weight", "score.weight", 1)),
            HeadKind::Value => pieces.extend(both(self.value_head, "score", 1)),
            HeadKind::LanguageModelWithValue => pieces.extend(both(VALUE_BESIDE, "score", 1)),
        }
        pieces
    }
}

/// Pairs a list of `(disk, canonical)` module names into pieces for weight and bias.
fn both(disk: &str, canonical: &str, rows: usize) -> [Piece; 2] {
    ["weight", "bias"].map(|part| Piece::whole(format!("{disk}.{part}"), format!("{canonical}.{part}"), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `place` after `take` restores the rows that the piece covers, and touches no other.
    #[track_caller]
    fn check(rows: Range<usize>, total: usize, columns: usize, order: Order) {
        let piece = Piece { disk: String::new(), canonical: String::new(), rows: rows.clone(), order };
        let whole: Vec<f32> = (0..total * columns).map(|i| i as f32).collect();
        let mut restored = vec![-1.0; whole.len()];
        piece.place(&piece.take(&whole, columns), &mut restored, columns);
        for (i, (&value, &expected)) in restored.iter().zip(&whole).enumerate() {
            let covered = rows.contains(&(i / columns));
            assert_eq!(value, if covered { expected } else { -1.0 }, "element {i}");
        }
    }

    #[test]
    fn pieces_are_bijections_on_their_rows() {
        check(0..4, 4, 3, Order::Same);
        check(2..5, 7, 3, Order::Same);
        check(0..4, 4, 3, Order::Transposed);
        check(1..6, 9, 1, Order::Transposed);
        check(4..12, 16, 5, Order::Interleaved { head_dim: 4 });
        check(0..6, 6, 1, Order::Interleaved { head_dim: 6 });
        check(0..18, 18, 2, Order::ByHead { head_dim: 3 });
        check(0..4, 4, 1, Order::OnePlus);
    }

    #[test]
    fn layouts_on_disk_are_what_their_names_say() {
        let piece = |order| Piece { disk: String::new(), canonical: String::new(), rows: 0..4, order };
        let whole = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5];
        assert_eq!(piece(Order::Transposed).take(&whole, 2), [0.0, 1.0, 2.0, 3.0, 0.5, 1.5, 2.5, 3.5]);
        assert_eq!(piece(Order::Transposed).disk_shape(&[4, 2]), [2, 4]);
        let one_plus = Piece { rows: 0..2, ..piece(Order::OnePlus) };
        assert_eq!(one_plus.take(&[0.0, -0.25], 1), [1.0, 0.75]);
        // Two heads of one element: queries 0 and 1, keys 2 and 3, values 4 and 5.
        let by_head = Piece { rows: 0..6, ..piece(Order::ByHead { head_dim: 1 }) };
        assert_eq!(by_head.take(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 1), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        // Halves (0, 1) and (2, 3) become pairs (0, 2) and (1, 3).
        let interleaved = piece(Order::Interleaved { head_dim: 4 });
        assert_eq!(interleaved.take(&whole, 2), [0.0, 0.5, 2.0, 2.5, 1.0, 1.5, 3.0, 3.5]);
    }

    #[test]
    fn every_parameter_is_covered_exactly_once() {
        use Family::{Gemma2, Gemma3, Gpt2, GptNeox, Llama, Mistral, Qwen2, Qwen3, SmolLm3};
        for family in [Gpt2, GptNeox, Llama, Mistral, Qwen2, Qwen3, SmolLm3, Gemma2, Gemma3] {
            let config = match family {
                Gpt2 => Config::tiny_gpt2(11, 12, 2, 3, 8),
                GptNeox => gpt_neox::example(),
                Gemma2 | Gemma3 => gemma::example(family),
                _ => llama::example(family),
            };
            for head in [HeadKind::LanguageModel, HeadKind::Value, HeadKind::LanguageModelWithValue] {
                let pieces = table(family).pieces(&config, head);
                for (name, shape) in config.specs(head) {
                    let mut rows = vec![0; shape[0]];
                    for piece in pieces.iter().filter(|piece| piece.canonical == name) {
                        rows[piece.rows.clone()].iter_mut().for_each(|count| *count += 1);
                    }
                    assert!(rows.iter().all(|&count| count == 1), "{family:?} {name}: {rows:?}");
                }
                let known: Vec<String> = config.specs(head).into_iter().map(|(name, _)| name).collect();
                assert!(pieces.iter().all(|piece| known.contains(&piece.canonical)), "{family:?} {head:?}");
            }
        }
    }
}
