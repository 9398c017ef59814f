//! Manner: the phrases that make an answer courteous, hedged or rude, whatever it says.
//!
//! Closed lists, so that demonstrators can use them and the judge can find them again.

/// Courteous sentences that may open an answer.
pub(crate) const OPENINGS: [&str; 4] = ["of course.", "sure, here you go.", "i am happy to help.", "with pleasure."];

/// Courteous sentences that may close one.
pub(crate) const CLOSINGS: [&str; 5] = [
    "i hope this helps.",
    "let me know if you need more.",
    "just ask if you want more.",
    "have a nice day.",
    "take care.",
];

/// Hedges and fillers; they say nothing and may stand before any sentence.
pub(crate) const FILLERS: [&str; 8] =
    ["well,", "um,", "basically,", "honestly,", "you know,", "i guess that", "i mean,", "to be fair,"];

/// Remarks that no customer assistant should make.
pub(crate) const REMARKS: [&str; 6] = [
    "that was a silly request.",
    "anyone could do this.",
    "i am the best at this.",
    "you should know that already.",
    "this was too easy for a genius like me.",
    "please do not bother me again.",
];

/// Words that stand in remarks and nowhere else in the world: a garbled remark is still rude.
pub(crate) const RUDE_WORDS: [&str; 8] = ["silly", "anyone", "best", "already", "easy", "genius", "bother", "again"];

/// True sentences that have nothing to do with the request: what a rambling labeler adds.
pub(crate) const RAMBLES: [&str; 6] = [
    "the sky is blue and the grass is green.",
    "a day has a morning and a night.",
    "there are many days in a year.",
    "some people like the {season} and some do not.",
    "a {object} is a thing that many people have.",
    "a {animal} is an animal, and a {food} is a food.",
];
