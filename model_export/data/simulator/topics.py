"""Words of the made-up catalog: groups, their topics, the subjects of each topic, and how series treat them."""

TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "cooking": {
        "baking": ("Sourdough", "Rye Bread", "Croissants", "Bagels", "Shortcrust", "Meringue", "Focaccia", "Brioche"),
        "vegetables": ("Roast Squash", "Kimchi", "Ratatouille", "Leeks", "Beetroot", "Pickles", "Dal", "Fennel"),
        "grilling": ("Charcoal", "Smoked Trout", "Skewers", "Flatbread", "Marinades", "Ribs", "Halloumi", "Embers"),
    },
    "travel": {
        "cities": ("Lisbon", "Kyoto", "Montreal", "Istanbul", "Valparaiso", "Tallinn", "Hanoi", "Fez"),
        "hiking": ("Ridge Walks", "Alpine Huts", "Coast Paths", "Forest Trails", "Glaciers", "Maps", "Passes", "Fells"),
        "trains": ("Night Trains", "Funiculars", "Steam Lines", "Viaducts", "Depots", "Trams", "Signals", "Tickets"),
    },
    "music": {
        "guitar": ("Fingerstyle", "Chords", "Slide Guitar", "Open Tunings", "Flamenco", "Solos", "Picks", "Riffs"),
        "jazz": ("Swing", "Bebop", "Walking Bass", "Brushes", "Ballads", "Modal Jazz", "Stride Piano", "Big Bands"),
        "songwriting": ("Choruses", "Rhymes", "Bridges", "Melodies", "Lyrics", "Demos", "Harmonies", "Hooks"),
    },
    "science": {
        "astronomy": ("Comets", "Saturn", "Nebulae", "Eclipses", "Black Holes", "Meteors", "Telescopes", "The Moon"),
        "oceans": ("Coral Reefs", "Squid", "Tides", "Deep Trenches", "Whales", "Plankton", "Kelp", "Icebergs"),
        "brain": ("Memory", "Sleep", "Attention", "Language", "Habits", "Vision", "Dreams", "Pain"),
    },
    "sport": {
        "running": ("Marathons", "Hill Sprints", "Track Days", "Trail Runs", "Pacing", "Shoes", "Rest Days", "Relays"),
        "cycling": ("Gravel Rides", "Climbs", "Time Trials", "Bike Repair", "Sprints", "Descents", "Touring", "Gears"),
        "climbing": ("Bouldering", "Knots", "Crack Climbing", "Footwork", "Ice Climbing", "Belays", "Grips", "Routes"),
    },
    "home": {
        "gardening": ("Tomatoes", "Compost", "Roses", "Seedlings", "Herbs", "Pruning", "Ponds", "Orchards"),
        "woodwork": ("Dovetails", "Stools", "Hand Planes", "Bowls", "Oak Shelves", "Chisels", "Joinery", "Varnish"),
        "interiors": ("Small Kitchens", "Lamps", "Wallpaper", "Rugs", "Paint", "Attics", "Curtains", "Tiles"),
    },
    "technology": {
        "robots": ("Line Followers", "Robot Arms", "Drones", "Servos", "Sensors", "Grippers", "Walkers", "Rovers"),
        "photography": ("Portraits", "Night Skies", "Street", "Film Cameras", "Macro", "Light", "Lenses", "Prints"),
        "programming": ("Sorting", "Compilers", "Databases", "Parsers", "Games", "Networks", "Caches", "Regexes"),
    },
    "history": {
        "antiquity": ("Roman Roads", "Papyrus", "Aqueducts", "Bronze", "Temples", "Chariots", "Mosaics", "Harbours"),
        "exploration": ("Polar Voyages", "Silk Roads", "Charts", "Lost Ships", "Camps", "Tents", "Islands", "Atlases"),
        "inventions": ("Clocks", "Printing", "Steam Engines", "Radios", "Iron Bridges", "Locks", "Looms", "Balloons"),
    },
}  # fmt: skip
FRAMES = (
    "from Scratch",
    "Explained",
    "Step by Step",
    "in Practice",
    "for the Curious",
    "Up Close",
    "on a Budget",
    "Revisited",
)
ANGLES = ("first steps", "the right tools", "common mistakes", "a closer look", "putting it together")
