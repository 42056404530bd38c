"""The explorer: a page to look around in what a model attended to, and who answers it.

    questions.py, jobs: what can be asked         Explorer.answer(question, parameters), Explorer.run(job, ...)
    parcel.py: an answer as bytes                 the same for a server, a notebook and a file
    server.py: answers over HTTP, on loopback

The page itself (web/) is built into `page/`. What each question and answer holds: `web/src/source/contract.ts`.
"""
