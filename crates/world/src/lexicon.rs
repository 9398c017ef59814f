//! The closed vocabulary of the instruction world, and the facts that relate its words.
//!
//! A word belongs to exactly one root class, so that a text can be read back without guessing what
//! a word means; a test refuses a word in two classes. Facts are columns of the same tables: the
//! fox's row says where it lives and what it eats, and prose, answers and the judge all read it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

/// The lexicon, built once.
pub(crate) fn lexicon() -> &'static Lexicon {
    static LEXICON: LazyLock<Lexicon> = LazyLock::new(Lexicon::build);
    &LEXICON
}

/// Every class with its words, and every fact.
pub(crate) struct Lexicon {
    classes: BTreeMap<&'static str, Vec<&'static str>>,
    roots: BTreeMap<&'static str, &'static str>,
    root_of_class: BTreeMap<&'static str, &'static str>,
    facts: BTreeMap<(&'static str, &'static str), &'static str>,
    range: BTreeMap<(&'static str, &'static str), &'static str>,
}

impl Lexicon {
    /// The words of a class, in table order. A class that no table declares is a mistake in a
    /// template, so it panics: templates are constants, and a test renders every one of them.
    pub(crate) fn words(&self, class: &str) -> &[&'static str] {
        self.classes.get(class).unwrap_or_else(|| panic!("no table declares class `{class}`"))
    }

    /// The root class of a word: `fox` is an `animal`, `happy` a `feeling` (by way of `joy`).
    pub(crate) fn root(&self, word: &str) -> Option<&'static str> {
        self.roots.get(word).copied()
    }

    /// The root of a class: `joy` and `woe` are both `feeling`.
    pub(crate) fn root_of_class(&self, class: &str) -> &'static str {
        self.root_of_class.get(class).unwrap_or_else(|| panic!("no table declares class `{class}`"))
    }

    /// Whether `word` is one of `class`, and if so the static word.
    pub(crate) fn member(&self, class: &str, word: &str) -> Option<&'static str> {
        self.words(class).iter().copied().find(|&w| w == word)
    }

    /// A fact: `fact("fox", "home")` is `forest`.
    pub(crate) fn fact(&self, word: &str, attribute: &str) -> Option<&'static str> {
        // The key borrows for the static lifetime; a range lookup would hide this simple scan of a
        // pair, so the static spelling of both words is found first.
        let (&word, _) = self.roots.get_key_value(word)?;
        self.facts.get(&(word, self.static_attribute(attribute)?)).copied()
    }

    /// The root class of an attribute's values: `("animal", "home")` is `place`.
    pub(crate) fn range(&self, class: &str, attribute: &str) -> &'static str {
        let class = self.root_of_class(class);
        let attribute = self.static_attribute(attribute).unwrap_or_else(|| panic!("no attribute `{attribute}`"));
        self.range.get(&(class, attribute)).unwrap_or_else(|| panic!("`{class}` has no attribute `{attribute}`"))
    }

    /// The words of `class` whose `attribute` is `value`, in table order.
    pub(crate) fn having(&self, class: &str, attribute: &str, value: &str) -> Vec<&'static str> {
        self.words(class).iter().copied().filter(|word| self.fact(word, attribute) == Some(value)).collect()
    }

    /// Every word that stands in a table.
    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static str> {
        self.roots.keys().copied()
    }

    fn static_attribute(&self, attribute: &str) -> Option<&'static str> {
        self.range.keys().map(|&(_, name)| name).find(|&name| name == attribute)
    }

    fn build() -> Lexicon {
        let mut lexicon = Lexicon {
            classes: BTreeMap::new(),
            roots: BTreeMap::new(),
            root_of_class: BTreeMap::new(),
            facts: BTreeMap::new(),
            range: BTreeMap::new(),
        };
        for table in TABLES {
            lexicon.root_of_class.insert(table.class, table.root);
            lexicon.root_of_class.insert(table.root, table.root);
            let words: Vec<&'static str> = table.rows.split_whitespace().collect();
            assert_eq!(words.len() % (1 + table.columns.len()), 0, "ragged table `{}`", table.class);
            for row in words.chunks(1 + table.columns.len()) {
                lexicon.add(row[0], table.class, table.root);
                for (&(attribute, class), &value) in table.columns.iter().zip(&row[1..]) {
                    lexicon.root_of_class.entry(class).or_insert(class);
                    let root = lexicon.root_of_class[class];
                    lexicon.add(value, class, root);
                    lexicon.facts.insert((row[0], attribute), value);
                    lexicon.range.insert((table.root, attribute), root);
                }
            }
        }
        lexicon
    }

    fn add(&mut self, word: &'static str, class: &'static str, root: &'static str) {
        for name in BTreeSet::from([class, root]) {
            let words = self.classes.entry(name).or_default();
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let first = *self.roots.entry(word).or_insert(root);
        assert_eq!(first, root, "`{word}` stands in two classes");
    }
}

/// One table: the first word of a row is a member of `class`, the others its facts.
struct Table {
    class: &'static str,
    /// The class that the judge's grammar sees; itself, or one that several tables share.
    root: &'static str,
    /// Attribute and the class of its values.
    columns: &'static [(&'static str, &'static str)],
    rows: &'static str,
}

const fn list(class: &'static str, rows: &'static str) -> Table {
    Table { class, root: class, columns: &[], rows }
}

const TABLES: &[Table] = &[
    list("colour", "red blue green yellow brown white black grey orange pink purple"),
    Table {
        class: "home",
        root: "place",
        columns: &[],
        rows: "forest river barn sea desert jungle garden mountains house",
    },
    Table {
        class: "spot",
        root: "place",
        columns: &[],
        rows: "market harbour museum castle library bakery school hospital theatre station village beach \
               bridge tower airport park",
    },
    Table {
        class: "number",
        root: "number",
        columns: &[("next", "number")],
        rows: "zero one one two two three three four four five five six six seven seven eight eight nine \
               nine ten ten eleven eleven twelve",
    },
    Table { class: "count", root: "number", columns: &[], rows: "two three four" },
    // Those that have a next one.
    Table {
        class: "few",
        root: "number",
        columns: &[],
        rows: "one two three four five six seven eight nine ten eleven",
    },
    Table {
        class: "animal",
        root: "animal",
        columns: &[("home", "place"), ("feed", "feed"), ("colour", "colour"), ("young", "young"), ("legs", "number")],
        rows: "
            fox      forest    berries red    cub        four
            owl      forest    mice    brown  owlet      two
            bear     forest    honey   brown  cub        four
            frog     river     flies   green  tadpole    four
            duck     river     weeds   white  duckling   two
            cow      barn      grass   black  calf       four
            horse    barn      hay     brown  foal       four
            whale    sea       shrimp  blue   calf       zero
            shark    sea       fish    grey   pup        zero
            camel    desert    thorns  brown  calf       four
            snake    desert    eggs    yellow hatchling  zero
            monkey   jungle    figs    brown  infant     two
            parrot   jungle    seeds   green  chick      two
            bee      garden    nectar  yellow larva      six
            rabbit   garden    clover  white  bunny      four
            eagle    mountains meat    brown  eaglet     two
            yak      mountains grass   black  calf       four
            cat      house     fish    black  kitten     four
            dog      house     meat    brown  puppy      four",
    },
    Table {
        class: "food",
        root: "food",
        columns: &[("colour", "colour"), ("taste", "taste"), ("kind", "kind")],
        rows: "
            apple    red    sweet fruit
            lemon    yellow sour  fruit
            lime     green  sour  fruit
            cherry   red    sweet fruit
            banana   yellow sweet fruit
            carrot   orange sweet vegetable
            pepper   red    spicy vegetable
            onion    white  spicy vegetable
            tomato   red    sour  vegetable
            pickle   green  sour  vegetable
            cake     white  sweet dessert
            cookie   brown  sweet dessert
            pudding  yellow sweet dessert
            pretzel  brown  salty snack
            cracker  brown  salty snack
            olive    black  salty snack
            sausage  pink   salty snack
            taco     yellow spicy snack",
    },
    Table {
        class: "object",
        root: "object",
        columns: &[("material", "material"), ("room", "place")],
        rows: "
            spoon    wood    kitchen
            pan      metal   kitchen
            cup      clay    kitchen
            plate    clay    kitchen
            bowl     clay    kitchen
            oven     metal   kitchen
            jar      glass   kitchen
            hammer   metal   workshop
            tractor  metal   barn
            cart     wood    barn
            bench    wood    garden
            statue   stone   garden
            pebble   stone   garden
            glove    leather garden
            kite     paper   park
            mirror   glass   bedroom
            lamp     glass   bedroom
            coat     cloth   bedroom
            hat      cloth   bedroom
            book     paper   library
            map      paper   library
            pencil   wood    school
            bell     metal   school
            drum     leather theatre
            boat     wood    harbour
            net      cloth   harbour
            bag      leather station
            key      metal   castle
            needle   metal   studio
            brush    wood    studio",
    },
    Table {
        class: "job",
        root: "job",
        columns: &[("deed", "deed"), ("product", "product"), ("place", "place"), ("tool", "object")],
        rows: "
            baker     bakes   bread     bakery   oven
            farmer    grows   wheat     barn     tractor
            teacher   teaches children  school   pencil
            doctor    heals   patients  hospital needle
            fisher    catches trout     harbour  net
            painter   paints  pictures  studio   brush
            carpenter builds  tables    workshop hammer
            cook      makes   meals     kitchen  pan
            pilot     steers  planes    airport  map
            drummer   plays   songs     theatre  drum",
    },
    Table {
        class: "name",
        root: "name",
        columns: &[("she", "pronoun")],
        rows: "anna she ben he clara she david he emma she felix he grace she hugo he ivy she jack he",
    },
    Table {
        class: "adj",
        root: "adj",
        columns: &[("opposite", "adj")],
        rows: "hot cold cold hot big small small big old new new old fast slow slow fast bright dark dark bright \
               wet dry dry wet loud quiet quiet loud clean dirty dirty clean tall short short tall strong weak \
               weak strong narrow wide wide narrow calm wild wild calm",
    },
    Table {
        class: "trait",
        root: "adj",
        columns: &[],
        rows: "big small old new bright dark quiet clean calm wild wide narrow",
    },
    Table {
        class: "joy",
        root: "feeling",
        columns: &[("reaction", "reaction")],
        rows: "happy glad proud glad excited glad thankful glad cheerful glad hopeful glad relaxed glad merry glad",
    },
    Table {
        class: "woe",
        root: "feeling",
        columns: &[("reaction", "reaction")],
        rows: "sad sorry tired sorry lonely sorry angry sorry worried sorry nervous sorry bored sorry upset sorry \
               scared sorry",
    },
    Table {
        class: "moves",
        root: "moves",
        columns: &[("past", "moved")],
        rows: "runs ran walks walked jumps jumped swims swam goes went rides rode hurries hurried climbs climbed \
               crawls crawled drives drove hops hopped travels travelled marches marched",
    },
    Table {
        class: "takes",
        root: "takes",
        columns: &[("past", "took")],
        rows: "takes took finds found buys bought sees saw loses lost sells sold brings brought holds held \
               keeps kept hides hid cleans cleaned breaks broke draws drew likes liked wants wanted drops dropped \
               lifts lifted washes washed",
    },
    Table {
        class: "day",
        root: "day",
        columns: &[("next", "day"), ("before", "day")],
        rows: "monday tuesday sunday tuesday wednesday monday wednesday thursday tuesday thursday friday wednesday \
               friday saturday thursday saturday sunday friday sunday monday saturday",
    },
    Table {
        class: "season",
        root: "season",
        columns: &[("next", "season"), ("weather", "weather")],
        rows: "spring summer rain summer autumn sunshine autumn winter wind winter spring snow",
    },
    list("time", "morning afternoon evening night"),
    list("event", "picnic party concert meeting race wedding lesson game parade fair"),
    list("good", "tasty fresh lovely perfect wonderful great"),
    list("bad", "stale burnt awful terrible nasty bland"),
    list("category", "animal food job"),
];
