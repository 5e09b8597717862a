"""Where servers keep the list of clients they trust, for `ebbgate trust`. From the vendors' manuals; menus move between releases."""

from __future__ import annotations

from typing import Final

MENUS: Final = (
    (
        "Siemens S7-1500, TIA Portal",
        "import our certificate: project > Security settings > Security features > Certificate manager > Trusted certificates; then"
        " CPU properties > OPC UA > Server > Security > Secure channel > Trusted clients > add it; compile and download (a stop of the PLC)",
    ),
    ("Kepware KEPServerEX", "OPC UA Configuration Manager > Trusted Clients: select Ebbgate (it appears after the first try) > Trust; reinitialize"),
    ("Ignition", "Gateway web page > Config > OPC UA > Security > Server > Quarantined Certificates: Ebbgate > Trust"),
    ("any other", "find the list or folder of rejected certificates, compare the fingerprint, move it to the trusted ones; or import our file there"),
)
