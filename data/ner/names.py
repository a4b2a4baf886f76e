"""Real names for the built-in corpus: places, people, organisations, ambiguous names.

Compiled by hand for this project. Only the words of `COMMON_WORDS` occur in two names:
splits with different names therefore have no other word of a name in common.
"""


def _names(text: str) -> tuple[str, ...]:
    """Names of a block of text; `_` joins the words of one name."""
    return tuple(name.replace("_", " ") for name in text.split())


PLACES = _names("""
Aberdeen Accra Agra Algiers Almaty Amman Amsterdam Ankara Antwerp Athens Auckland
Baghdad Baku Bamako Bangkok Barcelona Basel Beirut Belgrade Bergen Berlin Bilbao
Bogota Bologna Bordeaux Boston Brasilia Bratislava Brisbane Brussels Bucharest
Budapest Busan Cairo Calgary Canberra Caracas Cardiff Casablanca Chicago Chennai
Cologne Copenhagen Cordoba Cusco Dakar Damascus Darwin Delhi Denver Detroit Dhaka Doha
Dresden Dubai Dublin Durban Edinburgh Entebbe Fez Frankfurt Fukuoka Galway Gdansk
Geneva Genoa Ghent Glasgow Gothenburg Granada Graz Grenoble Guadalajara Guayaquil
Haifa Hamburg Hanoi Harare Havana Helsinki Hobart Istanbul Izmir Jakarta Jeddah
Johannesburg Kampala Karachi Kathmandu Kolkata Krakow Kyoto Lagos Lahore Lausanne
Leeds Leipzig Lima Lisbon Liverpool Ljubljana Luanda Lusaka Lviv Lyon Madrid Malaga
Malmo Manila Maputo Marrakesh Marseille Melbourne Memphis Mexicali Miami Minsk Mombasa
Montevideo Montreal Moscow Mumbai Munich Nairobi Nantes Naples Nicosia Odessa Osaka
Oslo Ottawa Palermo Perth Philadelphia Pittsburgh Porto Prague Pretoria Quebec Quito
Rabat Reykjavik Riga Rome Rotterdam Salvador Sapporo Sarajevo Seattle Seoul Seville
Shanghai Skopje Sofia Stockholm Strasbourg Stuttgart Surabaya Tallinn Tampa Tashkent
Tbilisi Tehran Tirana Tokyo Toronto Toulouse Trieste Tripoli Tunis Turin Utrecht
Vancouver Venice Verona Vienna Vilnius Warsaw Winnipeg Yerevan Zagreb Zurich Albania
Algeria Andalusia Angola Argentina Armenia Australia Austria Bavaria Belgium Bolivia
Borneo Botswana Brazil Brittany Bulgaria Burgundy Cambodia Cameroon Canada Catalonia
Chile Colombia Corsica Crete Croatia Cuba Cyprus Danube Denmark Ecuador Egypt Estonia
Ethiopia Finland Flanders Galicia Ganges Germany Ghana Greece Hungary Iceland
Indonesia Jamaica Java Kenya Lapland Latvia Lebanon Lombardy Madagascar Malaysia Malta
Mekong Mongolia Morocco Namibia Nepal Nigeria Normandy Norway Patagonia Peru Poland
Portugal Provence Rhine Romania Rwanda Sardinia Saxony Senegal Serbia Siberia Sicily
Slovakia Slovenia Somalia Spain Sumatra Sweden Switzerland Tanzania Tasmania Thailand
Tibet Tunisia Tuscany Uganda Ukraine Uruguay Vietnam Volga Wales Yemen Yukon Zambezi
Zambia Zimbabwe New_York New_Orleans New_Haven San_Remo San_Marino San_Antonio
Santa_Cruz Santa_Barbara South_Africa South_Dakota North_Yorkshire North_Carolina
West_Bengal East_Timor Saint_Petersburg Saint_Lucia Sierra_Leone Costa_Rica El_Paso
Los_Angeles Las_Vegas Buenos_Aires Rio_Grande Hong_Kong Kuala_Lumpur Sri_Lanka
Salt_Lake_City Cape_Verde Cape_Horn Addis_Ababa Port_Moresby Port_Elizabeth Lake_Garda
Lake_Baikal Mount_Fuji Mount_Etna Puerto_Rico Saudi_Arabia Burkina_Faso Dar_es_Salaam
Le_Havre La_Plata Isle_of_Wight Gulf_of_Bothnia Bay_of_Biscay Republic_of_Moldova
""")
"""Cities, then countries, regions, rivers, islands and mountains."""

FIRST_NAMES = _names("""
Aaron Abigail Adam Adrian Agnes Aisha Alan Albert Alejandro Alice Amelia Amir Amy
Andrea Andrew Angela Anita Anna Anton Arjun Arthur Astrid Beatrice Ben Bernard Beth
Bianca Boris Brandon Brenda Brian Bridget Bruno Camille Carlos Carmen Carol Catherine
Cecilia Cedric Chloe Christopher Clara Claudia Colin Cynthia Daniel David Deborah
Deepak Denise Diana Diego Dmitri Dominic Donald Dorothy Edith Edward Eileen Elena
Eleanor Elias Ellen Emil Emily Emma Enrique Eric Esther Ethan Eugene Eva Fatima Felix
Fernando Fiona Frank Freya Gabriel Gareth Gemma Gerald Gloria Grace Graham Greta
Gustav Hannah Harold Hassan Heather Hector Helen Henry Hugo Ian Ibrahim Igor Ingrid
Irene Isaac Isabel Ivan Jacob James Jane Javier Jeremy Jessica Joan Joel Johanna John
Jonas Joseph Joyce Juan Judith Julia Karen Karl Katarina Keith Kenji Kevin Klaus Kofi
Lars Laura Lauren Leila Leo Leonard Linda Louise Lucas Lucy Luigi Magnus Marcus
Margaret Maria Mariko Marie Martha Matilda Matthew Megan Mei Michael Miguel Miriam
Mohamed Monica Nadia Naomi Natalie Neil Nicholas Nina Noah Nora Olga Oliver Omar Oscar
Pablo Pamela Patricia Paul Pedro Peter Philip Priya Rachel Raj Ralph Rebecca Ricardo
Rita Robert Rosa Rupert Ruth Samuel Sandra Sara Sergei Simon Stefan Stella Stephen
Susan Sven Tatiana Teresa Theodore Thomas Timothy Tomas Ursula Vanessa Vera Vikram
Viktor Vincent Walter Wendy William Yasmin Yuki Yusuf Zoe
""")
"""Given names."""

LAST_NAMES = _names("""
Abbott Adeyemi Ahmed Albrecht Allen Alvarez Andersen Armstrong Arnold Atkinson Bailey
Baker Banerjee Barnes Barrett Bauer Becker Bennett Berg Bianchi Bishop Blake Bowman
Boyd Bradley Brennan Brooks Brown Bruce Burke Burns Butler Campbell Carlson Carter
Castillo Chandra Chapman Chen Chopra Cohen Coleman Collins Conti Cooper Cortez
Costello Cox Craig Crawford Cruise Cunningham Curtis Davies Dawson Delgado Diaz Dixon
Doyle Dubois Duncan Edwards Ellis Engel Eriksson Esposito Evans Farrell Ferguson
Fernandez Ferrari Fischer Fisher Fletcher Flores Foster Fowler Fraser Freeman Fuchs
Fuller Garcia Gardner Gibson Gomez Gonzalez Goodman Gordon Graves Griffin Gupta Haas
Hall Hamilton Hansen Harper Harris Hartmann Hayes Henderson Hernandez Hoffman Holmes
Hopkins Howard Huber Hughes Hunter Ibarra Ito Jansen Jenkins Jensen Johansson Johnson
Jones Kapoor Karlsson Kaufman Keller Kelly Khan Kim Klein Kowalski Kramer Krishnan
Kumar Lambert Larsen Laurent Lawson Lehmann Lindberg Lopez Lowe Lundqvist Maier Malik
Martinez Mason Mbeki McCarthy McDonald Mehta Mendoza Meyer Miller Mitchell Moore
Morales Moreau Moretti Morgan Morris Murphy Nakamura Navarro Neumann Nguyen Nielsen
Novak Okafor Olsen Ortega Owens Palmer Patel Pereira Peterson Petrov Popov Porter
Powell Quinn Ramirez Rao Reed Reyes Richter Rivera Roberts Robinson Rodriguez Rossi
Russo Ryan Sanchez Sato Schmidt Schneider Schubert Schultz Sharma Shaw Silva Singh
Smith Sokolov Sorensen Stewart Suzuki Tanaka Taylor Thompson Torres Tucker Turner
Vargas Vogel Volkov Wagner Walker Wallace Watanabe Weber Wright Yamamoto Young Zhang
Zimmermann
""")
"""Family names."""

ORGANISATIONS = _names("""
Adidas Airbus Alibaba Allianz Asus Aviva BASF Barclays Bayer Boeing Bosch Bridgestone
Cadbury Canon Carrefour Cargill Caterpillar Chevron Cisco Citroen Colgate Danone
Daimler Deloitte Deutsche Electrolux Enel Epson Ericsson Expedia Exxon Facebook FedEx
Fiat Fujitsu Garmin Gazprom GlaxoSmithKline Goldman Google Greenpeace Heineken Hitachi
Honda Honeywell Huawei Hyundai Ikea Infosys Intel Interpol Isuzu Kawasaki Kellogg KLM
Komatsu Kraft Lego Lenovo Lidl Lockheed Logitech Lufthansa Lukoil Maersk Marriott
Mazda Michelin Microsoft Mitsubishi Monsanto Motorola NASA NATO Nestle Netflix Nike
Nintendo Nissan Novartis Nvidia Olivetti OPEC Oracle Oxfam Panasonic Pepsi Petronas
Pfizer Pirelli Procter Qantas Qualcomm Renault Reuters Roche Ryanair Samsung Sanofi
Santander Scania Shell Sony Spotify Starbucks Subaru Suez Swatch Symantec Telefonica
Tesco Tesla Thyssen Toshiba Toyota Twitter UBS Uber UNESCO UNICEF Unilever Vodafone
Volkswagen Volvo Walmart Wikipedia Xerox Yahoo Yamaha Zalando Arsenal_United
Juventus_Club Rangers_Club Celtic_Club Benfica_United Ajax_Club Stanford_University
Harvard_University Yale_University McGill_University Uppsala_University
Humboldt_University Sorbonne_Institute Pasteur_Institute Max_Planck_Society
Royal_Horticultural_Society Fulbright_Foundation Rockefeller_Foundation
Gates_Foundation Nobel_Foundation Lloyds_Bank Credit_Suisse_Group Virgin_Group
Tata_Group Ford_Motor_Company Walt_Disney_Company British_Broadcasting_Company
General_Electric_Company Red_Cross_Society Black_Forest_Club Metropolitan_Museum
Guggenheim_Museum Bank_of_Rosario House_of_Lords Ministry_of_Health
Museum_of_Natural_History Court_of_Auditors League_of_Nations Academy_of_Sciences
""")
"""Companies, clubs, universities, agencies."""

AMBIGUOUS = _names("""
Washington Jordan Georgia Paris Florence Victoria Chelsea Lincoln Amazon Phoenix
Sydney Austin Chad Israel India China Charlotte Madison Jackson Houston Dallas
Savannah Virginia Brooklyn Orlando Santiago Lourdes Milan Siena Asia Eden Kent Devon
Lancaster Bradford Stafford Warwick Preston Chester Clifton Burton Hilton Nelson
Wellington Hastings Lawrence Marshall Montgomery Cleveland Jefferson Franklin Berkeley
Cambridge Oxford Windsor Essex Durham Everton Fulham Barnsley Reading Columbia Cornell
Princeton Vanderbilt Nokia Siemens Philips Dodge Kelvin Derby Holland Ireland London
Lorraine Adelaide Kingston Regina Logan Trenton Bolton Burnley Hudson Sherwood Ashford
Stanley Douglas Alexandria Valencia Catania Mercedes Shannon Tyne Avon Clyde Severn
Galilee Bethany Sharon Salem Sinai Ravenna Bristol
""")
"""Names of places, of people and of organisations alike."""

COMMON_WORDS = frozenset(
    _names("""
Academy Bank Bay Black British Cape City Club Company Costa Court East El Foundation
General Group Gulf House Institute Isle La Lake Las Le League Los Ministry Mount
Museum New North Port Puerto Red Republic Rio Royal Saint Salt San Santa Society South
United University West es of
""")
)
"""Words that names of several splits may share."""
