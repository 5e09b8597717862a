"""IT process 4: reads landing/, sole writer of deliver/, of the lake and of the targets. Side: IT; user: ebbgate-deliver."""
