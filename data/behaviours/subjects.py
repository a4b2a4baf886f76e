"""Well-known facts with one word as their object: capitals, and athletes' sports.

Sports: N. Nanda, S. Rajamanoharan, J. Kramár and R. Shah (2023), "Fact Finding:
Attempting to Reverse-Engineer Factual Recall on the Neuron Level" (Alignment Forum).
Capitals: the task country-capital of M. Hanna, S. Pezzelle and Y. Belinkov (2024),
"Have Faith in Faithfulness", https://arxiv.org/abs/2403.17806, in words of our own.
"""

from circuitcut.data.facts.records import Fact, filled

_CAPITALS = """
Afghanistan Kabul, Albania Tirana, Angola Luanda, Armenia Yerevan, Australia Canberra,
Austria Vienna, Azerbaijan Baku, Bangladesh Dhaka, Belarus Minsk, Belgium Brussels,
Bulgaria Sofia, Canada Ottawa, Chile Santiago, China Beijing, Croatia Zagreb, Cuba
Havana, Cyprus Nicosia, Denmark Copenhagen, Egypt Cairo, England London, Estonia
Tallinn, Finland Helsinki, France Paris, Georgia Tbilisi, Germany Berlin, Ghana Accra,
Greece Athens, Hungary Budapest, Iceland Reykjavik, Indonesia Jakarta, Iran Tehran, Iraq
Baghdad, Ireland Dublin, Italy Rome, Jamaica Kingston, Japan Tokyo, Jordan Amman, Kenya
Nairobi, Latvia Riga, Lebanon Beirut, Libya Tripoli, Lithuania Vilnius, Mali Bamako,
Malta Valletta, Morocco Rabat, Nepal Kathmandu, New Zealand Wellington, Nicaragua
Managua, Nigeria Abuja, North Korea Pyongyang, Norway Oslo, Oman Muscat, Pakistan
Islamabad, Paraguay Asuncion, Peru Lima, Philippines Manila, Poland Warsaw, Portugal
Lisbon, Qatar Doha, Romania Bucharest, Russia Moscow, Rwanda Kigali, Saudi Arabia
Riyadh, Scotland Edinburgh, Senegal Dakar, Serbia Belgrade, Slovakia Bratislava,
Slovenia Ljubljana, Somalia Mogadishu, South Korea Seoul, Spain Madrid, Sudan Khartoum,
Sweden Stockholm, Switzerland Bern, Syria Damascus, Taiwan Taipei, Thailand Bangkok,
Tunisia Tunis, Turkey Ankara, Uganda Kampala, Ukraine Kiev, Uruguay Montevideo,
Venezuela Caracas, Vietnam Hanoi, Wales Cardiff, Zambia Lusaka, Zimbabwe Harare
"""
_ATHLETES = {
    "basketball": """Michael Jordan, LeBron James, Kobe Bryant, Magic Johnson, Larry
        Bird, Tim Duncan, Stephen Curry, Kevin Durant, Charles Barkley, Patrick Ewing,
        Scottie Pippen, Dirk Nowitzki, Steve Nash, Karl Malone, Allen Iverson, Dwight
        Howard""",
    "baseball": """Babe Ruth, Hank Aaron, Willie Mays, Mickey Mantle, Derek Jeter,
        Jackie Robinson, Ted Williams, Joe DiMaggio, Barry Bonds, Sammy Sosa, Roger
        Clemens, Cy Young, Roberto Clemente, Randy Johnson, Pedro Martinez, Mike
        Trout""",
    "soccer": """Lionel Messi, Cristiano Ronaldo, Diego Maradona, David Beckham,
        Zinedine Zidane, Wayne Rooney, Thierry Henry, Johan Cruyff, Franz Beckenbauer,
        Bobby Charlton, George Best, Mia Hamm, Andres Iniesta, Gareth Bale, Harry Kane,
        Didier Drogba""",
    "tennis": """Roger Federer, Rafael Nadal, Novak Djokovic, Serena Williams, Venus
        Williams, Pete Sampras, Andre Agassi, Steffi Graf, Bjorn Borg, John McEnroe,
        Jimmy Connors, Martina Navratilova, Boris Becker, Andy Murray, Monica Seles,
        Maria Sharapova""",
    "hockey": """Wayne Gretzky, Mario Lemieux, Gordie Howe, Bobby Orr, Sidney Crosby,
        Mark Messier, Bobby Hull, Jaromir Jagr, Patrick Roy, Martin Brodeur, Alexander
        Ovechkin, Steve Yzerman, Maurice Richard, Brett Hull, Joe Sakic, Teemu
        Selanne""",
    "golf": """Tiger Woods, Jack Nicklaus, Arnold Palmer, Phil Mickelson, Gary Player,
        Ben Hogan, Rory McIlroy, Sam Snead, Bobby Jones, Greg Norman, Ernie Els, Nick
        Faldo, Tom Watson, Annika Sorenstam, Byron Nelson, Lee Trevino""",
}
TEMPLATES = {
    "capital_of": (
        "The capital of {} is",
        "The capital city of {} is",
        "The government of {} is in",
        "The parliament of {} meets in",
    ),
    "sports": (
        "{} plays the sport of",
        "{} is a star of professional",
        "The sport that made {} famous is",
        "As a child {} began to play",
    ),
}


def capitals() -> list[tuple[str, str]]:
    """Countries with their capitals, no capital twice."""
    words = [pair.split() for pair in _CAPITALS.replace("\n", " ").split(",")]
    return [(" ".join(country), capital) for *country, capital in words]


def athletes() -> list[tuple[str, str]]:
    """Athletes with their sports, of every sport as many."""
    return [
        (" ".join(name.split()), sport)
        for sport, names in _ATHLETES.items()
        for name in names.split(",")
    ]


def built_in_facts(relation: str) -> list[Fact]:
    """The facts of `capital_of` or `sports`, each asked for in four ways."""
    pairs = capitals() if relation == "capital_of" else athletes()
    facts = []
    for subject, answer in pairs:
        where = f"built-in data, {relation} {subject}"
        prompts = [filled(text, subject, "{}", where) for text in TEMPLATES[relation]]
        facts.append(Fact(subject, relation, answer, tuple(prompts), where=where))
    return facts
