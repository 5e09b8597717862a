"""Where servers keep the list of clients they trust, for `ebbgate trust`. Menus move between releases.

Kepware: the section "Trusted Clients" of PTC's manual "OPC UA Configuration Manager" (2020). Ignition: the guide "Connect to Ignition" of
EMQX Neuron (docs.emqx.com), for releases with the menu Config. Siemens and the last row are common knowledge, not checked against a manual.
"""

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
