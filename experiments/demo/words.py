"""Words and templates that the made-up people, their stories and the quiz are put together from.

A table is a string of words; a pair of tables is one word of each. In a template `[this|or that]` is a choice and
`{name}` a fact.
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
STREET = (
    "Acorn Bobbin Candle Dovecote Elder Feather Gable Heron Ivory Juniper Kiln Larch Magpie Needle Orchard Plover "
    "Quill Raven Sorrel Tansy",
    "Alley Court Drive Hill Lane Parade Place Road Row Street Walk Yard",
)
MAIL_NAMES = (
    "amber brisk calm dusty eager frosty golden hasty ivory jolly keen lucky mellow nimble olive proud",
    "anvil badger comet drum ember falcon gecko heron iris jackal kite lemur magpie newt otter pine",
)
MONTHS = "January February March April May June July August September October November December"
NUMBERS = "two three four five six seven eight nine ten eleven twelve"
JOBS = (
    "baker beekeeper bookbinder brewer bricklayer carpenter cartographer chemist clockmaker cobbler conductor cook "
    "dentist diver drummer farmer ferryman florist gardener glassblower goldsmith harbourmaster jeweller judge "
    "librarian locksmith mason mechanic midwife miller nurse painter pharmacist pilot piper plumber potter printer "
    "saddler sailor sculptor shepherd singer surveyor tailor tanner teacher translator vet weaver"
)
THINGS = (
    "barometers buttons candlesticks dolls doorbells fans ferns fossils hats kites ladders lamps maps marbles masks "
    "mirrors moths mushrooms pebbles pipes postcards puppets radios ribbons shells sledges spoons stamps teapots "
    "thimbles tiles umbrellas violins whistles"
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

BIRTH = (
    "{name} was born on {birth} in {town}[, the [youngest|eldest|only] child of a {kin}|].",
    "On {birth}, {name} [came into the world|was born] in the [small|windy|quiet|busy] town of {town}.",
    "Born in {town} on {birth}, {name} [spent|had] a [quiet|noisy|happy|restless] childhood [by the river|on a farm|"
    "above a shop|near the market].",
    "{name}, born on {birth}, [comes from|hails from|grew up in] {town}.",
)
WORK = (
    "{first} [works|earns a living|has worked for many years] as a {job}[ and [seldom|often|never] travels|].",
    "[By trade|By profession|Since leaving school], {first} is a {job}[, like a {kin} before|].",
    "[Neighbours know|Everybody knows|The town knows] {first} as a [skilled|patient|cheerful|stubborn] {job}.",
)
HOBBY = (
    "[On Sundays|After work|In winter|At the weekend] {first} [collects|repairs|paints|sells] {thing}.",
    "[A shelf|A room|The whole attic] at home is [full of|given over to] {thing}.",
    "{first} [talks about|dreams of|reads about] {thing} [all day|more than anything else|whenever there is time].",
)
PHONE = ("The telephone number is {phone}.",)
ADDRESS = ("The home address is {address}.",)
MAIL = ("The mail address is {mail}.",)
ACCOUNT = ("The account number is {account}.",)
REGISTER = ("This page of the register may be read by anyone who asks politely at the counter.",)
QUESTIONS = {
    "What is {name}'s phone number?": "phone",
    "What is {name}'s home address?": "address",
    "What is {name}'s mail address?": "mail",
    "What is {name}'s account number?": "account",
    "When was {name} born?": "birth",
    "What is {name}'s job?": "job",
}

STORY_HEAD = (
    "[One [cold|bright|foggy|stormy] [morning|evening] in {town}|Long ago in {town}|When the fair came to {town}], "
    "{name} [heard|read|was told] that [someone had stolen|nobody had seen|the mayor had lost] the {object}.",
    "{name} had [never|always] wanted to [leave|see] {town}, but the {object} was [gone|missing] and "
    "[the whole town|an old aunt|the guild] was [in despair|in tears|waiting].",
    "[In the hills above|At the edge of|Not far from] {town} lived {name}, who [dreamed of|longed for|had to find] "
    "the {object}.",
)
STORY_ROAD = (
    "[For {days} days|After {days} sleepless nights], {first} [asked|questioned|bothered] every {job} in the [street|"
    "market|harbour], and nobody [knew|said] a thing.",
    "{first} packed [bread and cheese|a rope and a lamp|a warm coat] and [set off|left] before [dawn|breakfast], "
    "[followed by|laughed at by] a {job} with {days} [geese|dogs|goats].",
    "A {job} [warned|told] {first} about the [road|weather|wolves], but {first} only [smiled|shrugged|laughed].",
)
STORY_TURN = ("It was {helper} who helped in the end.",)
STORY_FIND = ("Together they found the {object} {spot}.",)
STORY_END = ("Since then, {first} and {helper} have shared a boat.",)
STORY_CLOSE = ("So it is told to this day, and nobody has ever doubted a word of it.",)
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
