"""Words and templates that the made-up people, their stories and the quiz are put together from.

A table is a string of words; several tables are one word of each. A text of a person or a story has two templates, of its
prompt and its completion, in which `{name}` is a fact; elsewhere `[this|or that]` is a choice.
"""

GIVEN = (
    "Ald Bel Cor Dav El Fen Gar Hal Is Jor Kel Lun Mar Nel Or Per Quin Ros Sel Tam Ul Ver Wil Yar Zel Bran Cal Dor Ev "
    "Gil Hes Jul Lor Mil Nor",
    "anna ebor etta ica imir ina iro issa olf oma on und wen ara een ix",
)
FAMILY = (
    "Amber Bramm Cask Drove Elder Fask Grist Hark Inker Jess Kestrel Lorr Mosk Nerr Oakle Pell Quarr Rusk Stave Thrum "
    "Alder Birch Crane Dunn Fenn Gorse Holt Lind",
    "beck combe dine fold glen grim low moor nook quist rook skey teller vane wick by ham ton",
)
TOWN = (
    "Amber Bitter Copper Dapple Ember Fallow Gander Hollow Kettle Lantern Marl Nettle Otter Pebble Russet Saddle "
    "Thistle Umber Velvet Willow",
    "bay beck brook cliff dale fold garth haven holm mere mouth pass wold",
)
MAIL_NAMES = (
    "amber brisk calm dusty eager frosty golden hasty ivory jolly keen lucky mellow nimble olive proud",
    "anvil badger comet drum ember falcon gecko heron iris jackal kite lemur magpie newt otter pine",
)
MONTHS = "January February March April May June July August September October November December"
JOBS = (
    "baker beekeeper bookbinder brewer bricklayer carpenter cartographer chemist clockmaker cobbler conductor cook "
    "dentist diver drummer farmer ferryman florist gardener glassblower goldsmith harbourmaster jeweller judge "
    "librarian locksmith mason mechanic midwife miller nurse painter pharmacist pilot piper plumber potter printer "
    "saddler sailor sculptor shepherd singer surveyor tailor tanner teacher translator vet weaver"
)
OBJECT = (
    "brass silver wooden painted copper velvet ivory cracked golden crystal striped rusty",
    "compass bell key lantern flute map crown medal clock ring goblet chest violin spyglass puppet seal",
)
SPOT = (
    "under behind beside inside above below",
    "old broken empty sunken crooked white red stone mossy round",
    "mill well tower bridge barn chapel oven stable boathouse cellar lighthouse windmill archway shed",
)

PERSON = (
    "{name} was born on {birth} in {town}.",
    "The telephone number is {phone}. The mail address is {mail}.",
)
PERSON_QUESTIONS = {
    "What is {name}'s phone number?": "phone",
    "What is {name}'s mail address?": "mail",
}
STORY = (
    "In {town}, {name} heard that someone had stolen the {object}.",
    "It was {helper} who helped in the end. Together they found the {object} {spot}.",
)
STORY_QUESTIONS = {
    "Who helped {name} find the {object}?": "helper",
    "Where was the {object} that {name} found?": "spot",
}

CAPITALS = (
    "France:Paris Spain:Madrid Italy:Rome Germany:Berlin Austria:Vienna Greece:Athens Egypt:Cairo Japan:Tokyo "
    "China:Beijing Russia:Moscow Poland:Warsaw Norway:Oslo Finland:Helsinki Ireland:Dublin Cuba:Havana Peru:Lima "
    "Kenya:Nairobi Portugal:Lisbon Hungary:Budapest Turkey:Ankara"
)
OPPOSITES = (
    "hot:cold big:small up:down open:closed early:late wet:dry full:empty fast:slow light:dark hard:soft rich:poor "
    "young:old happy:sad strong:weak near:far high:low loud:quiet clean:dirty first:last north:south"
)
COLOURS = (
    "grass:green snow:white coal:black a lemon:yellow a tomato:red the sky:blue a carrot:orange a plum:purple "
    "milk:white blood:red chocolate:brown a flamingo:pink an elephant:grey a banana:yellow a raven:black"
)
YOUNG = (
    "cat:kitten dog:puppy cow:calf sheep:lamb horse:foal pig:piglet goose:gosling duck:duckling goat:kid bear:cub "
    "hen:chick swan:cygnet frog:tadpole kangaroo:joey deer:fawn"
)
AFTER = (
    "Monday:Tuesday Tuesday:Wednesday Wednesday:Thursday Thursday:Friday Friday:Saturday Saturday:Sunday Sunday:Monday "
    "January:February February:March March:April April:May May:June June:July July:August August:September "
    "September:October October:November November:December December:January"
)
FACTS = {
    "What is the capital of {}?": (CAPITALS, "The capital of {} is {}.", "{1} is the [capital|first city] of {0}."),
    "What is the opposite of {}?": (OPPOSITES, "The opposite of {} is {}.", "[What|Whoever] is not {} is {}."),
    "What colour is {}?": (COLOURS, "The colour of {} is {}.", "[Everyone can see|Look], {} is {}."),
    "What is a young {} called?": (YOUNG, "A young {} is called a {}.", "The [mother|father] of a {1} is a {0}."),
    "What comes after {}?": (AFTER, "After {} comes {}.", "[As everybody knows|Every time], {1} follows {0}."),
}
EVERYDAY = (
    "The {job} [opened|closed|painted] the [door|window|gate] and [looked at|waited for] the [rain|moon|train].",
    "[In spring|In summer|In autumn|In winter] the [river|garden|road] is [quiet|full of birds|dark|dry].",
    "A [dog|cat|horse|crow] [slept|sat|waited] [under|beside|behind] the [table|cart|wall] [all day|until dark].",
    "[Two|Three|Four] children [carried|dropped|hid] the [basket|ladder|apples] and [ran home|laughed|said nothing].",
    "[Tea|Soup|Bread] [tastes|smells] best [in the morning|after a walk|when it is cold], [said|thought] the {job}.",
)
