"""A tracker: writes each event's kind and update to events.txt in the run's folder."""

import mtplug
from mtplug.training import Tracker

MTPLUG_API = {"trackers": 1}


class EventList(Tracker):
    def event(self, kind, values):
        with (self.run_dir / "events.txt").open("a") as file:
            file.write(f"{values['update']} {kind}\n")


@mtplug.hookimpl
def register_trackers(register):
    register("NAME", EventList)
