//! What the policy and the fine-tuned model answered to the same prompts, side by side: where the policy gained most
//! by the judge, and where it lost most.

use crate::{
    html::{Element, Html, el},
    parts::{absent, paragraph},
    run::{Answer, Run, Sample},
    table::details,
};

/// The section, from `eval/samples.json`, in at most `room` bytes where cutting long texts can do that.
pub(crate) fn section(run: &Run, room: usize) -> Html {
    if run.asks_people {
        // Points that the run's judge gave before would not be theirs.
        return absent("People compare the answers of new and old policy; these are in the folder of feedback.");
    }
    let Some(samples) = &run.samples else {
        return absent(match run.is_retrained {
            true => "The judge of the run has not compared the answers of new and old policy (eval/samples.json).",
            false => "The evaluation has not written its samples yet (eval/samples.json).",
        });
    };
    let with = |cap: usize| all(run, samples, cap);
    let fits = CAPS.iter().map(|&cap| with(cap)).find(|html| html.len() <= room);
    fits.unwrap_or_else(|| with(CAPS[CAPS.len() - 1]))
}

/// The policy, and what it is compared with, as the samples call them.
fn pair(run: &Run) -> [&'static str; 2] {
    if run.is_retrained { ["new", "old"] } else { ["ppo_ptx", "sft"] }
}

/// Samples of each kind.
const MOST: usize = 50;
/// Of these, how many are open from the start.
const OPEN: usize = 10;

/// How many characters of a text are shown; the first with which the page is small enough.
const CAPS: [usize; 7] = [6000, 3000, 1500, 800, 400, 200, 80];

fn all(run: &Run, samples: &[Sample], cap: usize) -> Html {
    let pair = pair(run);
    let mut judged: Vec<(f64, &Sample)> =
        samples.iter().filter_map(|sample| Some((gain(sample, pair)?, sample))).collect();
    judged.sort_by(|a, b| b.0.total_cmp(&a.0));
    let gains: Vec<_> = judged.iter().copied().filter(|(gain, _)| *gain > 0.0).collect();
    let losses: Vec<_> = judged.iter().rev().copied().filter(|(gain, _)| *gain < 0.0).collect();
    let equal = judged.len() - gains.len() - losses.len();
    let [policy, other] = pair;
    let intro = paragraph(format!(
        "Of {} held-out prompts {policy} got more points of {} than {other} on {}, fewer on {}, and as many on \
         {equal}. These are the {} largest gains and the {} largest losses, not a fair sample of either model.",
        judged.len(),
        run.judge_word(),
        gains.len(),
        losses.len(),
        gains.len().min(MOST),
        losses.len().min(MOST)
    ));
    let whole =
        samples.iter().flat_map(|sample| sample.answers.values()).all(|answer| answer.text.chars().count() <= cap);
    let cut = (!whole).then(|| paragraph(format!("Texts are shown up to {cap} characters.")));
    [
        intro.into(),
        cut.into(),
        group("Largest gains", "Gain", &gains, pair, cap),
        group("Largest losses", "Loss", &losses, pair, cap),
    ]
    .into_iter()
    .collect()
}

/// Points of the policy's answer minus those of the other's.
fn gain(sample: &Sample, [policy, other]: [&str; 2]) -> Option<f64> {
    let points = |model: &str| sample.answers.get(model)?.points;
    Some(points(policy)? - points(other)?)
}

fn group(title: &str, kind: &str, samples: &[(f64, &Sample)], pair: [&str; 2], cap: usize) -> Html {
    let shown = &samples[..samples.len().min(MOST)];
    let article = |(number, (gain, sample)): (usize, &(f64, &Sample))| article(number, kind, *gain, sample, pair, cap);
    let mut articles: Vec<Element> = (1..).zip(shown).map(article).collect();
    let rest = articles.split_off(articles.len().min(OPEN));
    let mut html = Html::from(el("h3").text(title));
    if shown.is_empty() {
        html.push(paragraph("There are none."));
    }
    articles.into_iter().for_each(|article| html.push(article));
    if !rest.is_empty() {
        html.push(details(&format!("{} more", rest.len()), rest.into_iter().collect::<Html>()));
    }
    html
}

fn article(number: usize, kind: &str, gain: f64, sample: &Sample, pair: [&str; 2], cap: usize) -> Element {
    let title = format!("{kind} {number}: {} points", points(gain));
    let use_case = el("span").class("unit").text(" ").text(&sample.use_case);
    let side = |model: &str| sample.answers.get(model).map(|of| answer(model, of, cap));
    let others = sample.answers.iter().filter(|(model, _)| !pair.contains(&model.as_str()));
    let others: Vec<Element> = others.map(|(model, of)| answer(model, of, cap)).collect();
    let others = (!others.is_empty()).then(|| {
        let summary = format!("{kind} {number}: {} other answers", others.len());
        details(&summary, el("div").class("pair").add_all(others))
    });
    el("article")
        .class("sample")
        .add(el("h4").text(title).add(use_case))
        .add(el("p").class("prompt").attr("dir", "auto").add(cut(&sample.prompt, cap)))
        .add(el("div").class("pair").add_all(pair.iter().map(|model| side(model))))
        .add(others)
}

fn answer(model: &str, of: &Answer, cap: usize) -> Element {
    let said = of.points.map_or("not judged".to_owned(), |points_of| format!("{} points", points(points_of)));
    let title = el("h5").text(model).add(el("span").class("unit").text(" ").text(said));
    let text = match of.text.is_empty() {
        true => el("span").class("none").text("(nothing)").into(),
        false => cut(&of.text, cap),
    };
    el("div").add(title).add(el("p").class("answer").attr("dir", "auto").add(text))
}

/// The beginning of a text, and how much is missing.
fn cut(text: &str, cap: usize) -> Html {
    let length = text.chars().count();
    let start = crate::html::text(text.chars().take(cap).collect::<String>());
    match length > cap {
        true => start.followed_by(el("span").class("none").text(format!(" … {} more characters", length - cap))),
        false => start,
    }
}

/// Points with as many digits as they need, two at most after the point.
fn points(value: f64) -> String {
    let written = format!("{value:.2}");
    written.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(prompt: &str, policy: f64, other: f64) -> Sample {
        let answer = |points| Answer { text: format!("answer worth {points}"), points: Some(points) };
        let answers = [("ppo_ptx", policy), ("sft", other), ("base", 0.0)];
        let answers = answers.map(|(model, points)| (model.to_owned(), answer(points))).into();
        Sample { prompt: prompt.to_owned(), use_case: "chat".to_owned(), answers }
    }

    fn page(samples: Vec<Sample>, room: usize) -> String {
        let mut run = Run::from_files("r", |_| None);
        run.samples = Some(samples);
        section(&run, room).into_page()
    }

    #[test]
    fn gains_come_from_the_largest_down_and_losses_too() {
        let html = page(
            vec![sample("one", 5.0, 4.0), sample("two", 1.0, 9.0), sample("three", 9.0, 0.5), sample("four", 3.0, 3.0)],
            1 << 20,
        );
        let order = ["Gain 1: 8.5 points", "three", "Gain 2: 1 points", "one", "Loss 1: -8 points", "two"];
        let places: Vec<usize> = order.iter().map(|part| html.find(part).unwrap()).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(!html.contains("four"));
        assert!(html.contains("more points of the judge than sft on 2, fewer on 1, and as many on 1."));
    }

    #[test]
    fn long_texts_are_cut_until_they_fit() {
        let long = |i: usize| sample(&"x".repeat(5000), i as f64, 0.0);
        let samples: Vec<Sample> = (1..=60).map(long).collect();
        let html = page(samples, 100_000);
        assert!(html.len() <= 100_050, "{}", html.len());
        assert!(html.contains("Texts are shown up to 800 characters.") || html.contains("4200 more characters"));
        assert!(!html.contains("Gain 51:"));
    }

    #[test]
    fn an_answer_without_points_is_neither_gain_nor_loss() {
        let mut without = sample("one", 1.0, 0.0);
        without.answers.get_mut("sft").unwrap().points = None;
        assert!(page(vec![without], 1 << 20).contains("Of 0 held-out prompts"));
    }
}
