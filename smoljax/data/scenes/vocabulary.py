"""The words of the scenes dataset: what may be drawn, what is kept out of training, what is printed."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("sand", "grass", "sky", "stone", "wood", "snow", "night", "brick")
SPLITS = ("train", "validation", "test", "test_compositional")
KINDS = (
    "existence",
    "count",
    "colour",
    "shape",
    "size",
    "texture",
    "comparison",
    "relation",
    "reading",
)

SIDE = 96
"""Pixels a side of a picture."""
CELL = 8
"""Pixels a side of a cell of the dense labels."""
CELLS = SIDE // CELL

UNSEEN_PAIRS = frozenset(
    {
        ("purple", "circle"),
        ("yellow", "square"),
        ("blue", "triangle"),
        ("brown", "star"),
        ("orange", "heart"),
        ("pink", "cross"),
        ("green", "diamond"),
        ("red", "ring"),
    }
)
"""(colour, shape) pairs drawn, and spoken of, in `test_compositional` only: each colour and each shape once."""

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""Character class k of `characters` is `CHARACTERS[k - 1]`; 0 is none."""

_WORDS = """
ACE ACT AGE AIR ANT APE ARM ART ASH AXE BAG BAR BAT BED BEE BIG BOX BOY BUS CAB CAP CAR CAT COW CUP DAY
DOG DOT EAR EGG EYE FAN FAR FIG FIT FLY FOX FUN GAS GEM HAT HEN HOT ICE INK JAM JAR JET JOB JOY KEY KID
KIT LAB LEG LIP LOG MAP MIX MUD MUG NET NEW NUT OAK OIL OLD OWL PAN PEN PIE PIG POT RAT RUG SEA SKY SUN
TAX TEA TIE TOP TOY VAN WAX WEB WIG ZOO
ARCH AXLE BABY BALL BAND BANK BARN BATH BEAN BEAR BELL BIKE BIRD BLUE BOAT BOLT BOOK BOOT BUSH CAFE CAKE
CAMP CARD CAVE CHEF CITY CLAY CLUB COAT COIN CORN CUBE DECK DESK DIAL DISK DOOR DRUM DUCK DUST EAST ECHO
EXIT FACE FARM FERN FIRE FISH FLAG FOAM FOOD FORK FROG GAME GATE GIFT GOAT GOLD GULF HALL HAND HARP HAWK
HERO HILL HOME HOOK IRON JAZZ JUMP KING KITE LAKE LAMP LEAF LION LOVE MAIL MAZE MILK MINT MOON NEST NOSE
OPEN OVEN PARK PATH PEAR POND QUIZ RAIN RICE ROAD ROCK ROOF ROSE SALT SEED SHIP SHOP SNOW SOAP SOCK STOP
TAXI TENT TREE VASE WAVE WIND WOLF WOOD YARN YOGA ZERO
APPLE BEACH BENCH BREAD BRUSH CABLE CANDY CHAIR CHESS CLOCK CLOUD CROWN DANCE EAGLE EARTH FLAME FLUTE
FRUIT GHOST GIANT GLASS GRAPE HORSE HOTEL HOUSE JUICE KNIFE LEMON LIGHT MAGIC MAPLE METAL MONEY MOUSE
MUSIC NIGHT OCEAN ONION PAINT PANDA PAPER PIANO PILOT PIZZA PLANE PLANT QUEEN RADIO RIVER ROBOT SALAD
SHEEP SMILE SNAKE SPOON STONE SUGAR TABLE TIGER TOWER TRAIN TRUCK VOICE WATCH WATER WHALE WORLD ZEBRA
"""

LEXICON = tuple(_WORDS.split())
UNSEEN_WORDS = LEXICON[4::10]
"""Every tenth word: printed in `test_compositional` only."""
SEEN_WORDS = tuple(word for word in LEXICON if word not in set(UNSEEN_WORDS))
