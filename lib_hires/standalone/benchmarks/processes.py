"""Processes of their own, for work that is to be measured or done side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fresh_processes() -> BaseContext:
    """Starts fresh processes, which need not import everything anew where the system has a way."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["lib_hires.standalone.benchmarks.preload"])
    return context


def in_fresh_process(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """function(*arguments) in a process of its own; its errors are raised here."""
    with ProcessPoolExecutor(1, mp_context=fresh_processes()) as pool:
        return pool.submit(function, *arguments, **named).result()
